"""Values as they cross the border: exact built-in types, and no form that costs the reader more than its length."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.sandbox import codec, frames


def there_and_back(value: Any) -> Any:
    return codec.decode(codec.loads(codec.dumps(codec.encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 10**100, 1.5, math.inf, -math.inf, "é\ud800\0", b"\x00\xff", bytearray(b"x"), 2j,
        [], (), {}, set(), frozenset({1}), deque([1, (2,)]), range(3, 9, 2), Decimal("1.20"), Fraction(3, 7),
        {"a": [1, (2, {3})], (1, 2): {4: None}, 1.5: "x"}, {"tuple": [1]}, [{"dict": []}],
    ],
)  # fmt: skip
def test_built_in_values_keep_value_and_type(value: Any) -> None:
    result = there_and_back(value)
    assert result == value
    assert type(result) is type(value)


def test_integers_too_long_for_decimal_text_travel_too() -> None:
    assert there_and_back(-(10**5000)) == -(10**5000)


def test_nan_stays_nan() -> None:
    assert math.isnan(there_and_back(math.nan))


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()


@pytest.mark.slow
@given(st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner)))
def test_any_nesting_survives(value: Any) -> None:
    assert there_and_back(value) == value


def test_subclasses_lose_their_methods_and_keep_their_data() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Colour(IntEnum):
        RED = 3

    point = namedtuple("point", "x y")
    for value, plain in [
        (Liar(9), 9), (Colour.RED, 3), (point(1, 2), (1, 2)), (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
    ]:  # fmt: skip
        result = there_and_back(value)
        assert type(result) is type(plain)
        assert result == plain


def test_what_is_no_data_is_refused() -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for value in (object(), lambda: 1, cyclic, [object()], iter([])):
        with pytest.raises(codec.Unencodable):
            codec.encode(value)


@pytest.mark.parametrize(
    "form",
    [
        {"tuple": 3}, {"dict": [[1]]}, {"dict": [[[], 1]]}, {"set": [[]]}, {"float": "1e5"}, {"int": "xyz"}, {"int": 3},
        {"bytes": "0"}, {"decimal": "x"}, {"fraction": ["1", "0"]}, {"range": [1, 2, 0]}, {"complex": []},
        {"unknown": 1}, {}, {"a": 1, "b": 2}, {"fraction": ["0x1" + "0" * 9000, "0x3"]}, {"decimal": "1" * 9000},
        {"set": [i * (2**61 - 1) for i in range(2000)]},
    ],
)  # fmt: skip
def test_forged_forms_are_undecodable(form: Any) -> None:
    with pytest.raises(codec.Undecodable):
        codec.decode(form)


def test_depth_is_bounded_on_both_sides() -> None:
    deep: Any = 1
    for _ in range(codec.MAX_DEPTH + 5):
        deep = [deep]
    with pytest.raises(codec.Unencodable, match="nested deeper"):
        codec.encode(deep)
    with pytest.raises(codec.Undecodable, match="nested deeper"):
        codec.decode(deep)
    with pytest.raises(codec.Undecodable):
        codec.loads(b"[" * 200_000)


def test_frames_end_at_what_does_not_parse() -> None:
    good = frames.encode({"a": 1})
    assert frames.parse(good + good) == [{"a": 1}, {"a": 1}]
    assert frames.parse(good + b"\x04\0\0\0nope" + good) == [{"a": 1}]
    assert frames.parse(good + good[:-1]) == [{"a": 1}]
    assert frames.parse(b"\xff\xff\xff\xff") == []
