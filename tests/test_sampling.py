"""The sampler: each problem once an epoch, from a state of three numbers, exactly after a reload."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from rlvr.records import Problem
from rlvr.sampling import ProblemSampler

PROBLEMS = [Problem(id=f"p{n}", prompt=f"{n}?", reference=str(n), key=str(n)) for n in range(7)]


def ids(drawn: list[tuple[Problem, int]]) -> list[tuple[str, int]]:
    return [(problem.id, visit) for problem, visit in drawn]


def test_as_given_goes_round_and_counts_visits() -> None:
    sampler = ProblemSampler(PROBLEMS[:3], "as_given", seed=0)
    assert ids(sampler.next(2)) == [("p0", 0), ("p1", 0)]
    assert ids(sampler.next(2)) == [("p2", 0), ("p0", 1)]
    assert ids(sampler.next(7)) == [("p1", 1), ("p2", 1), ("p0", 2), ("p1", 2), ("p2", 2), ("p0", 3), ("p1", 3)]
    assert sampler.epoch == 3 + 2 / 3


def test_every_epoch_holds_each_problem_once_in_an_order_of_its_own() -> None:
    drawn = ids(ProblemSampler(PROBLEMS, "shuffled", seed=0).next(5 * 7))
    epochs = [drawn[start : start + 7] for start in range(0, 35, 7)]
    for number, epoch in enumerate(epochs):
        assert {name for name, _ in epoch} == {problem.id for problem in PROBLEMS}
        assert {visit for _, visit in epoch} == {number}
    assert len({tuple(name for name, _ in epoch) for epoch in epochs}) == 5
    assert Counter(name for name, _ in drawn) == {problem.id: 5 for problem in PROBLEMS}


def test_the_order_depends_on_seed_and_ids_alone() -> None:
    def order(problems: list[Problem], seed: int) -> list[tuple[str, int]]:
        return ids(ProblemSampler(problems, "shuffled", seed).next(14))

    assert order(PROBLEMS, 0) == order(PROBLEMS, 0) == order(PROBLEMS[::-1], 0)
    assert order(PROBLEMS, 0) != order(PROBLEMS, 1)


def test_the_first_draws_never_change() -> None:
    """A stored order: a run from before must go on in the order it had."""
    drawn = ids(ProblemSampler(PROBLEMS, "shuffled", seed=0).next(7))
    assert [name for name, _ in drawn] == ["p5", "p3", "p2", "p0", "p4", "p6", "p1"]


@pytest.mark.parametrize("before", [0, 1, 6, 7, 8, 20])
def test_a_reloaded_sampler_draws_what_the_first_would_have(before: int) -> None:
    sampler, other = (ProblemSampler(PROBLEMS, "shuffled", seed=3) for _ in range(2))
    if before:
        sampler.next(before)
    state = json.loads(json.dumps(sampler.state_dict()))
    other.next(4)  # what the other had done is forgotten
    other.load_state_dict(state)
    for _ in range(5):
        assert ids(other.next(3)) == ids(sampler.next(3))


@pytest.mark.parametrize("change", ["fewer", "question", "reference", "seed", "order"])
def test_a_state_of_other_problems_is_refused(change: str) -> None:
    state = ProblemSampler(PROBLEMS, "shuffled", seed=0).state_dict()
    other = {
        "fewer": lambda: ProblemSampler(PROBLEMS[1:], "shuffled", seed=0),
        "question": lambda: ProblemSampler([replace(PROBLEMS[0], prompt="?"), *PROBLEMS[1:]], "shuffled", seed=0),
        "reference": lambda: ProblemSampler([replace(PROBLEMS[0], reference=9), *PROBLEMS[1:]], "shuffled", seed=0),
        "seed": lambda: ProblemSampler(PROBLEMS, "shuffled", seed=1),
        "order": lambda: ProblemSampler(PROBLEMS, "as_given", seed=0),
    }[change]()
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"problems\.train, problems\.order or run\.seed changed"):
        other.load_state_dict(state)
    assert other.state_dict() == before


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        ProblemSampler([], "shuffled", seed=0)
    with pytest.raises(ValueError, match="got 'random'"):
        ProblemSampler(PROBLEMS, "random", seed=0)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        ProblemSampler(PROBLEMS, "shuffled", seed=0).next(0)
    sampler = ProblemSampler(PROBLEMS, "shuffled", seed=0)
    with pytest.raises(ValueError, match="position 8 cannot be"):
        sampler.load_state_dict({**sampler.state_dict(), "position": 8})
