from typing import Any

import pytest

from rlvr.state.register import StateRegister


class Counter:
    """A stateful number."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def register_of(**owners: Counter) -> StateRegister:
    register = StateRegister()
    for name, owner in owners.items():
        register.add(name, owner)
    return register


def test_every_owner_gets_its_state_back() -> None:
    saved = register_of(a=Counter(1), b=Counter(2)).state_dict()
    assert saved == {"a": {"version": 1, "state": {"value": 1}}, "b": {"version": 1, "state": {"value": 2}}}
    b, a = Counter(), Counter()
    register = register_of(b=b, a=a)
    register.load_state_dict(saved)
    assert (a.value, b.value) == (1, 2)
    assert register.names() == ["b", "a"]


def test_a_name_is_taken_once() -> None:
    register = register_of(a=Counter())
    with pytest.raises(ValueError, match="state 'a' is registered twice"):
        register.add("a", Counter())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": {"version": 1, "state": {"value": 9}}}, r"it lacks \['b'\] and holds nothing"),
        (
            {name: {"version": 1, "state": {"value": 9}} for name in "abc"},
            r"it lacks nothing and holds \['c'\] that this run does not know",
        ),
        (
            {"a": {"version": 1, "state": {"value": 9}}, "b": {"version": 2, "state": {}}},
            "state 'b' in the checkpoint has format 2, this rlvr reads 1",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(saved: dict[str, Any], message: str) -> None:
    a, b = Counter(1), Counter(2)
    with pytest.raises(ValueError, match=message):
        register_of(a=a, b=b).load_state_dict(saved)
    assert (a.value, b.value) == (1, 2)
