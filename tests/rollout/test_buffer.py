"""Which groups may be trained when: deadlines by hand, and no group ever past its own."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pydantic import TypeAdapter

from rlvr.config.schedule import Schedule
from rlvr.records import Completion, Problem
from rlvr.rollout.buffer import Buffer, Pending
from tests.builders import make_group, make_rollout

PROBLEMS = [Problem(id=f"p{i}", prompt="?", reference="x", key=str(i)) for i in range(400)]


def buffer(prompts: int = 2, **schedule: Any) -> Buffer:
    found: Schedule = TypeAdapter(Schedule).validate_python({"type": "partial"} | schedule)
    return Buffer(found, prompts, PROBLEMS)


def finish(one: Pending, version: int) -> None:
    """All its tokens have this version."""
    completion = Completion(
        ids=(5,), behaviour_logprobs=(-1.0,), weight_version=(version,), text="", finish_reason="stop"
    )
    one.journal.pieces["a"] = [completion]
    one.group = make_group(make_rollout(versions=(version,) * 3), problem=one.problem.id)


def names(found: Any) -> Any:
    return None if found is None else [group.problem.id for group in found]


def test_by_hand_two_a_step_with_a_bound_of_one() -> None:
    """Four groups of version 0, deadline step 2. At step 1 any two may be taken; the other two must be at step 2, and a
    group of version 1 has to wait however early it finishes."""
    held = buffer(oversample=2.0, max_staleness=1)
    held.add([(one, 0) for one in PROBLEMS[:4]], 0)
    a, b, c, d = held.pending
    finish(d, 0)
    assert held.take(2, step=1) is None  # too few
    finish(b, 0)
    assert names(held.take(2, step=1)) == ["p1", "p3"]  # in the order of drawing
    held.add([(one, 0) for one in PROBLEMS[4:6]], 1)
    e, f = held.pending[2:]
    finish(e, 1)
    finish(a, 0)
    assert held.take(2, step=2) is None  # p2 would be too old at step 3
    finish(c, 0)
    assert names(held.take(2, step=2)) == ["p0", "p2"]
    assert held.pending == [e, f]


def test_a_group_may_be_passed_over_while_there_is_time() -> None:
    """Bound 2, one a step, three on their way: the oldest may be passed over once, not twice."""
    held = buffer(prompts=1, oversample=3.0, max_staleness=2)
    held.add([(PROBLEMS[0], 0)], 0)
    held.add([(PROBLEMS[1], 0)], 1)
    held.add([(PROBLEMS[2], 0)], 1)
    slow, one, two = held.pending
    finish(one, 1)
    assert names(held.take(1, step=2)) == ["p1"]
    finish(two, 1)
    assert held.take(1, step=3) is None  # p0 has its deadline at step 3
    finish(slow, 0)
    assert names(held.take(1, step=3)) == ["p0"]


def test_what_falls_out_by_hand() -> None:
    """drop: a token past the bound; mask: the newest token past it, of a finished group; wait: nothing."""
    for policy, gone in (("drop", ["p0", "p1"]), ("mask", ["p0"]), ("wait", [])):
        held = buffer(max_staleness=1, oversample=2.0, on_stale=policy)
        held.add([(one, 0) for one in PROBLEMS[:2]], 0)
        held.add([(PROBLEMS[2], 0)], 1)
        finish(held.pending[0], 0)
        assert [one.problem.id for one in held.drop_stale(step=2)] == []
        assert [one.problem.id for one in held.drop_stale(step=3)] == gone
        assert held.counts(3, [])["buffer/oldest"] == (1 if policy == "drop" else 2)


@pytest.mark.parametrize("seed", range(200))
def test_nothing_waits_for_ever_and_nothing_gets_too_old(seed: int) -> None:
    """Theorem: with at most (bound + 1) * P groups on their way, whatever order they finish in, there is always a
    choice of P that leaves the others trainable, and none is ever taken past its deadline."""
    rng = random.Random(seed)
    prompts, bound = rng.randint(1, 4), rng.randint(0, 3)
    held = buffer(prompts=prompts, oversample=1 + rng.random() * bound, max_staleness=bound)
    drawn = 0
    for step in range(1, 12):
        missing = held._schedule.in_flight(prompts) - len(held.pending)
        held.add([(one, 0) for one in PROBLEMS[drawn : drawn + missing]], step - 1)
        drawn += missing
        born = {one.problem.id: one.admitted for one in held.pending}
        waiting = held.unfinished()
        rng.shuffle(waiting)
        while (taken := held.take(prompts, step)) is None:
            one = waiting.pop()  # or there was no choice although all had finished
            finish(one, one.admitted)
        assert all(step - 1 - born[group.problem.id] <= bound for group in taken)


def test_unknown_problems_in_a_state_are_named() -> None:
    held = buffer()
    held.add([(Problem(id="gone", prompt="?", reference="x", key="k"), 0)], 0)
    with pytest.raises(ValueError, match=r"1 unfinished groups of problems.*gone"):
        buffer().load_state_dict(held.state_dict())


def test_a_group_is_as_old_as_its_oldest_token_or_as_the_oldest_that_it_may_still_get() -> None:
    """Admitted at version 1, a token of version 3 in the journal: an answer that has not begun may hold version 1. One
    restored at version 4 with a token of version 2 is of version 2."""
    held = buffer()
    held.add([(PROBLEMS[0], 0)], 1)
    (one,) = held.pending
    assert one.oldest == 1
    finish(one, 3)
    assert one.oldest == 1
    one.admitted = 4
    assert one.oldest == 3


def test_a_group_is_masked_away_only_when_its_newest_token_is_past_the_bound() -> None:
    """Bound 1, step 3, which starts from version 2: answers of versions 0 and 1 leave version 1 to be trained."""
    held = buffer(max_staleness=1, oversample=2.0, on_stale="mask")
    held.add([(PROBLEMS[0], 0)], 0)
    (one,) = held.pending
    finish(one, 0)
    one.group = make_group(make_rollout(versions=(0, 0, 0)), make_rollout(versions=(0, 1, 1)), problem="p0")
    assert held.drop_stale(step=3) == []
    assert held.drop_stale(step=4) == [one]


@pytest.mark.parametrize(("policy", "left"), [("drop", 0), ("mask", 1)])
def test_an_unfinished_group_past_the_bound_falls_out_under_drop_alone(policy: str, left: int) -> None:
    """Under mask its answers may still get tokens that are new enough."""
    held = buffer(max_staleness=1, oversample=2.0, on_stale=policy)
    held.add([(PROBLEMS[0], 0)], 0)
    held.drop_stale(step=2)
    assert len(held.pending) == 1  # of age 1, which the bound allows
    held.drop_stale(step=3)
    assert len(held.pending) == left


def test_counts_and_state_of_what_is_on_its_way() -> None:
    """Two groups, one finished with one token, one without any; the state brings both back, and the numbering."""
    held = buffer()
    held.add([(PROBLEMS[0], 5), (PROBLEMS[1], 0)], 2)
    finish(held.pending[0], 3)
    gone = Pending(PROBLEMS[2], 0, 9, 0)
    finish(gone, 0)
    assert held.counts(5, [gone]) == {
        "buffer/unfinished": 1.0, "buffer/finished": 1.0, "buffer/tokens": 1.0, "buffer/oldest": 2.0,
        "buffer/dropped_stale": 1.0, "tokens/dropped": 1.0,
    }  # fmt: skip
    again = buffer()
    again.load_state_dict(held.state_dict())
    assert [(one.problem.id, one.visit, one.order, one.admitted) for one in again.pending] == [
        ("p0", 5, 0, 2),
        ("p1", 0, 1, 2),
    ]
    assert [one.journal.tokens() for one in again.pending] == [1, 0]
    again.add([(PROBLEMS[3], 0)], 4)
    assert again.pending[-1].order == 2
