"""The detector of repetitions, by hand and beside vLLM's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from vllm.sampling_params import RepetitionDetectionParams
from vllm.v1.core.sched.utils import check_sequence_repetition

from rlvr.config import Recipe
from rlvr.engines.repetition import repeats
from rlvr.records import RepetitionStop
from tests.builders import recipe_data


@pytest.mark.parametrize(
    ("ids", "shortest", "longest", "count", "expected"),
    [
        ([7, 7, 7], 1, 4, 3, True),
        ([7, 7], 1, 4, 3, False),
        ([7, 7, 7], 2, 4, 3, False),
        ([5, 1, 2, 3, 1, 2, 3], 1, 3, 2, True),
        ([5, 1, 2, 3, 1, 2, 3], 1, 2, 2, False),
        ([1, 2, 3, 1, 2, 3, 1], 1, 3, 2, True),
        ([1, 2, 3, 1, 2, 3, 9], 1, 3, 2, False),
        ([7, 7, 7, 7], 2, 2, 2, True),
        ([], 1, 4, 2, False),
    ],
)
def test_by_hand(ids: list[int], shortest: int, longest: int, count: int, expected: bool) -> None:
    """Only the ending counts: copies next to each other, the last one whole."""
    assert repeats(ids, RepetitionStop(shortest=shortest, longest=longest, count=count)) is expected


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(0, 5),
    st.lists(st.integers(0, 2), max_size=1),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(2, 5),
)
def test_it_is_vllms_detector(
    head: list[int], pattern: list[int], copies: int, tail: list[int], shortest: int, more: int, count: int
) -> None:
    """Theorem by trial: on random sequences, most of which end in copies, it says what vLLM's function says."""
    ids = head + pattern * copies + tail
    theirs = RepetitionDetectionParams(min_pattern_size=shortest, max_pattern_size=shortest + more, min_count=count)
    ours = RepetitionStop(shortest=shortest, longest=shortest + more, count=count)
    assert repeats(ids, ours) is check_sequence_repetition(ids, theirs)


@pytest.mark.parametrize(
    ("repetition", "shaping", "said"),
    [
        ({"shortest": 9, "longest": 8}, [], "shortest must be at most longest = 8, got 9"),
        ({"count": 1}, [], "greater than or equal to 2"),
        ({"count": 17}, [], "count must be at most max_new_tokens / shortest = 16, got 17"),
        ({"count": 6, "shortest": 3}, [], "count must be at most max_new_tokens / shortest = 5, got 6"),
        (
            None,
            [{"type": "repetition_stop"}],
            "rollout.repetition must be set with shaping 'repetition_stop', got null",
        ),
    ],
)
def test_settings_that_never_apply_are_refused(repetition: object, shaping: list[object], said: str) -> None:
    data = recipe_data()
    data["rollout"]["repetition"], data["algorithm"] = repetition, {"shaping": shaping}
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate(data)
