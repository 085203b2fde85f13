"""The sampler: epochs, curricula and priorities, rest and retirement, all of them exactly after a reload."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rewards import Outcome
from rlvr.config.problems import Sampler
from rlvr.problems.rows import ProblemError
from rlvr.problems.sampler import ProblemSampler, SamplerExhausted, _exponentials, _hash64
from rlvr.records import Problem, RolloutGroup
from rlvr.runlog.run_log import read_metrics
from tests.builders import make_group, make_rollout
from tests.runs import Workspace

PROBLEMS = [Problem(id=f"p{n}", prompt=f"{n}?", reference=str(n), key=str(n)) for n in range(7)]


def sampler_of(problems: Sequence[Problem], kind: str, seed: int = 0, **options: Any) -> ProblemSampler:
    return ProblemSampler(problems, TypeAdapter(Sampler).validate_python({"type": kind, **options}), seed)


def came_out(name: str, *rewards: float | None) -> RolloutGroup:
    """A graded group of the problem `name`; None is a completion that could not be scored."""
    rollouts = [
        replace(make_rollout(Outcome.ERROR if reward is None else Outcome.CORRECT, sample=i), reward=reward)
        for i, reward in enumerate(rewards)
    ]
    return replace(make_group(*rollouts), problem=Problem(id=name, prompt="?", reference="", key=name))


def ids(drawn: list[tuple[Problem, int]]) -> list[tuple[str, int]]:
    return [(problem.id, visit) for problem, visit in drawn]


def test_as_given_goes_round_and_counts_visits() -> None:
    sampler = sampler_of(PROBLEMS[:3], "as_given", seed=0)
    assert ids(sampler.next(2)) == [("p0", 0), ("p1", 0)]
    assert ids(sampler.next(2)) == [("p2", 0), ("p0", 1)]
    assert ids(sampler.next(7)) == [("p1", 1), ("p2", 1), ("p0", 2), ("p1", 2), ("p2", 2), ("p0", 3), ("p1", 3)]
    assert sampler.epoch == 3 + 2 / 3


def test_every_epoch_holds_each_problem_once_in_an_order_of_its_own() -> None:
    drawn = ids(sampler_of(PROBLEMS, "shuffled", seed=0).next(5 * 7))
    epochs = [drawn[start : start + 7] for start in range(0, 35, 7)]
    for number, epoch in enumerate(epochs):
        assert {name for name, _ in epoch} == {problem.id for problem in PROBLEMS}
        assert {visit for _, visit in epoch} == {number}
    assert len({tuple(name for name, _ in epoch) for epoch in epochs}) == 5
    assert Counter(name for name, _ in drawn) == {problem.id: 5 for problem in PROBLEMS}


def test_the_order_depends_on_seed_and_ids_alone() -> None:
    def order(problems: list[Problem], seed: int) -> list[tuple[str, int]]:
        return ids(sampler_of(problems, "shuffled", seed).next(14))

    assert order(PROBLEMS, 0) == order(PROBLEMS, 0) == order(PROBLEMS[::-1], 0)
    assert order(PROBLEMS, 0) != order(PROBLEMS, 1)


def test_the_first_draws_never_change() -> None:
    """A stored order: a run from before must go on in the order it had."""
    drawn = ids(sampler_of(PROBLEMS, "shuffled", seed=0).next(7))
    assert [name for name, _ in drawn] == ["p5", "p3", "p2", "p0", "p4", "p6", "p1"]


@pytest.mark.parametrize("before", [0, 1, 6, 7, 8, 20])
def test_a_reloaded_sampler_draws_what_the_first_would_have(before: int) -> None:
    sampler, other = (sampler_of(PROBLEMS, "shuffled", seed=3) for _ in range(2))
    if before:
        sampler.next(before)
    state = json.loads(json.dumps(sampler.state_dict()))
    other.next(4)  # what the other had done is forgotten
    other.load_state_dict(state)
    for _ in range(5):
        assert ids(other.next(3)) == ids(sampler.next(3))


@pytest.mark.parametrize("change", ["fewer", "question", "reference", "seed", "order"])
def test_a_state_of_other_problems_is_refused(change: str) -> None:
    state = sampler_of(PROBLEMS, "shuffled", seed=0).state_dict()
    other = {
        "fewer": lambda: sampler_of(PROBLEMS[1:], "shuffled", seed=0),
        "question": lambda: sampler_of([replace(PROBLEMS[0], prompt="?"), *PROBLEMS[1:]], "shuffled", seed=0),
        "reference": lambda: sampler_of([replace(PROBLEMS[0], reference=9), *PROBLEMS[1:]], "shuffled", seed=0),
        "seed": lambda: sampler_of(PROBLEMS, "shuffled", seed=1),
        "order": lambda: sampler_of(PROBLEMS, "as_given", seed=0),
    }[change]()
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"problems\.train, problems\.sampler or run\.seed changed"):
        other.load_state_dict(state)
    assert other.state_dict() == before


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        sampler_of([], "shuffled", seed=0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        sampler_of(PROBLEMS, "shuffled", seed=0).next(0)
    sampler = sampler_of(PROBLEMS, "shuffled", seed=0)
    with pytest.raises(ValueError, match="position 8 cannot be"):
        sampler.load_state_dict({**sampler.state_dict(), "position": 8})


# ------------------------------------------------------------------------------------------------------- prioritised


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """sum (observed - expected)^2 / expected, the counts' total shared out as `expected` says."""
    assert set(counts) <= set(expected)
    total = counts.total()
    return sum((counts[key] - total * share) ** 2 / (total * share) for key, share in expected.items())


def prioritised(seed: int = 0) -> ProblemSampler:
    """Four problems whose weights are 0.1 (always solved: the floor), 0.5, 1 (never solved) and 1 (not seen yet)."""
    sampler = sampler_of(PROBLEMS[:4], "prioritised", seed=seed, floor=0.1)
    sampler.observe([came_out("p0", 1, 1), came_out("p1", 0, 1), came_out("p2", 0, 0)])
    return sampler


WEIGHTS = {"p0": 0.1, "p1": 0.5, "p2": 1.0, "p3": 1.0}


@pytest.mark.slow
def test_priorities_are_the_stated_proportions() -> None:
    """Theorem (competing exponentials): the first of independent exponentials with rates w_i is i with probability
    w_i / sum w. 20,000 single draws; 21.1 is what chi-square with 3 degrees of freedom exceeds once in 10,000."""
    sampler = prioritised()
    counts = Counter(sampler.next(1)[0][0].id for _ in range(20_000))
    assert chi_square(counts, {name: weight / 2.6 for name, weight in WEIGHTS.items()}) < 21.1


@pytest.mark.slow
def test_the_problems_of_one_draw_are_different_and_follow_the_same_weights() -> None:
    """Without replacement: i and then j with probability w_i / W * w_j / (W - w_i). 12 pairs, 11 degrees of freedom:
    above 37.4 once in 10,000."""
    sampler = prioritised()
    pairs = Counter(tuple(problem.id for problem, _ in sampler.next(2)) for _ in range(20_000))
    expected = {(i, j): wi / 2.6 * wj / (2.6 - wi) for i, wi in WEIGHTS.items() for j, wj in WEIGHTS.items() if i != j}
    assert chi_square(pairs, expected) < 37.4


def test_a_draw_of_more_than_there_are_begins_anew() -> None:
    drawn = ids(prioritised().next(11))
    assert len(set(drawn)) == 11
    for start in (0, 4):
        assert {name for name, _ in drawn[start : start + 4]} == set(WEIGHTS)
    assert {visit for _, visit in drawn[4:8]} == {1}


def test_the_exponentials_are_exponential_and_do_not_depend_on_each_other() -> None:
    """Mean and variance are 1, and two problems' draws have no correlation: 4.5 standard errors of 20,000 draws."""

    def draws(name: str) -> list[float]:
        keys = [_hash64(name) ^ _hash64(f"0|{number}|0") for number in range(20_000)]
        return list(_exponentials(np.array(keys, dtype=np.uint64)))

    a, b = draws("a"), draws("b")
    n = len(a)
    for one in (a, b):
        mean = math.fsum(one) / n
        assert abs(mean - 1) < 4.5 / math.sqrt(n)
        assert abs(math.fsum((x - mean) ** 2 for x in one) / n - 1) < 4.5 * math.sqrt(8 / n)
    assert abs(math.fsum((x - 1) * (y - 1) for x, y in zip(a, b, strict=True)) / n) < 4.5 / math.sqrt(n)


def test_nothing_starves_above_the_floor() -> None:
    """One problem of 20 is always solved, the others never: its chance is 0.05 / 19.05 a draw, so that it comes about
    26 times in 10,000; fewer than 8 would be 1 chance in 10,000."""
    problems = [Problem(id=f"p{n}", prompt="?", reference="", key=f"p{n}") for n in range(20)]
    sampler = sampler_of(problems, "prioritised")
    sampler.observe([came_out(problem.id, float(problem.id == "p7")) for problem in problems])
    assert 8 <= sum(sampler.next(1)[0][0].id == "p7" for _ in range(10_000)) <= 50


def test_success_rates_are_discounted_by_visit() -> None:
    """memory 0.5: 2 of 4, then 3 of 3 and one completion that was not scored, is (0.5 * 2 + 3) / (0.5 * 4 + 3) = 0.8;
    an unscored group says nothing."""
    sampler = sampler_of(PROBLEMS[:1], "prioritised", success=0.9)
    assert "sampler/success_rate" not in sampler.observe([came_out("p0", None, None)])
    assert sampler.observe([came_out("p0", 1, 0.89, 0, 0.9)])["sampler/success_rate"] == 0.5
    found = sampler.observe([came_out("p0", 1, None, 1, 1)])
    assert found == {"sampler/epoch": 0.0, "sampler/seen": 1.0, "sampler/success_rate": 0.8}


# -------------------------------------------------------------------------------------------------------- curriculum


def graded_problems(*values: Any, column: str = "pass_rate") -> list[Problem]:
    return [Problem(id=f"p{n}", prompt="?", reference="", key=str(n), meta={column: v}) for n, v in enumerate(values)]


def test_a_curriculum_warms_up_then_goes_from_easy_to_hard() -> None:
    """Pass rates: a high one is easy; problems that are equally hard change places from epoch to epoch."""
    sampler = sampler_of(graded_problems(0.1, 0.9, 0.5, 0.5, 0.5, 0.0), "curriculum", warmup_epochs=2)
    epochs = [[name for name, _ in ids(sampler.next(6))] for _ in range(12)]
    shuffled = sampler_of(graded_problems(0.1, 0.9, 0.5, 0.5, 0.5, 0.0), "shuffled")
    assert epochs[:2] == [[name for name, _ in ids(shuffled.next(6))] for _ in range(2)]
    for epoch in epochs[2:]:
        assert (epoch[0], epoch[4:]) == ("p1", ["p0", "p5"])
        assert set(epoch[1:4]) == {"p2", "p3", "p4"}
    assert len({tuple(epoch) for epoch in epochs[2:]}) > 2


def test_after_the_warm_up_only_the_hardest_share() -> None:
    """Kimi's ablation: all problems first, then the hard ones; of 5, a share of 0.5 are the 3 hardest. Which of equally
    hard ones are among them never changes."""
    sampler = sampler_of(graded_problems(1, 2, 3, 3, 3, column="steps"), "curriculum", column="steps", easy="low",
                         hardest=0.5)  # fmt: skip
    assert {name for name, _ in ids(sampler.next(5))} == {"p0", "p1", "p2", "p3", "p4"}
    for epoch in range(1, 4):
        assert set(ids(sampler.next(3))) == {("p2", epoch), ("p3", epoch), ("p4", epoch)}
    assert sampler.epoch == 4.0
    tied = sampler_of(graded_problems(1, 1, 1, 1), "curriculum", warmup_epochs=0, hardest=0.5)
    assert len({tuple(sorted(name for name, _ in ids(tied.next(2)))) for _ in range(10)}) == 1


def test_words_are_ordered_by_the_recipe() -> None:
    levels = ["Level 1", "Level 2", "Level 10"]
    problems = graded_problems("Level 10", "Level 1", "Level 2", column="level")
    sampler = sampler_of(problems, "curriculum", column="level", easy=levels, warmup_epochs=0)
    assert [name for name, _ in ids(sampler.next(3))] == ["p1", "p2", "p0"]


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        (0.5, {"column": "pass_rat"}, r"'pass_rat' is not there.*did you mean 'pass_rate'.*--difficulty"),
        ("hard", {}, "must hold a finite number, got 'hard'; for words give problems.sampler.easy"),
        (True, {}, "must hold a finite number, got True"),
        (float("nan"), {}, "must hold a finite number, got nan"),
        ("Level 3", {"easy": ["Level 1", "Level 2"]}, "holds 'Level 3', which problems.sampler.easy does not name"),
    ],
)
def test_a_column_that_says_nothing_is_refused(value: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        sampler_of(graded_problems(value), "curriculum", **options)


def test_another_difficulty_is_another_state() -> None:
    state = sampler_of(graded_problems(0.1, 0.2), "curriculum").state_dict()
    with pytest.raises(ValueError, match="drawing from other problems"):
        sampler_of(graded_problems(0.1, 0.3), "curriculum").load_state_dict(state)


# ------------------------------------------------------------------------------------------------- rest and retirement


def test_what_stays_unsolved_or_solved_rests() -> None:
    """Two epochs alike in a row, then left out of one: p0 is never solved, p1 always, p2 now and then; the third epoch
    holds p2 alone, the fourth all again, with visits that count draws."""
    sampler = sampler_of(PROBLEMS[:3], "as_given", rest={"visits": 2, "epochs": 1})
    results = [came_out("p0", 0, 0), came_out("p1", 1, 1), came_out("p2", 0, 1)]
    for visit in (0, 1):
        assert ids(sampler.next(3)) == [("p0", visit), ("p1", visit), ("p2", visit)]
        assert sampler.observe(results)["sampler/rested"] == 2.0 * visit
    assert ids(sampler.next(2)) == [("p2", 2), ("p0", 2)]
    assert ids(sampler.next(2)) == [("p1", 2), ("p2", 3)]
    assert sampler.observe([])["sampler/rested"] == 0.0


@pytest.mark.parametrize(("when", "left"), [("solved", {"p0", "p2"}), ("unsolved", {"p1", "p2"}), ("both", {"p2"})])
@pytest.mark.parametrize("kind", ["shuffled", "prioritised"])
def test_rest_may_be_for_one_of_them_alone(kind: str, when: str, left: set[str]) -> None:
    sampler = sampler_of(PROBLEMS[:3], kind, rest={"visits": 1, "epochs": 1000, "when": when})
    sampler.next(3)
    sampler.observe([came_out("p0", 0, 0), came_out("p1", 1, 1), came_out("p2", 0, 1)])
    assert {sampler.next(1)[0][0].id for _ in range(60)} == left


def test_a_visit_of_the_other_kind_or_a_mixed_one_breaks_the_row() -> None:
    sampler = sampler_of(PROBLEMS[:1], "shuffled", rest={"visits": 2})
    for rewards, rested in [((0,), 0), ((1,), 0), ((0,), 0), ((0, 1), 0), ((0,), 0), ((None,), 0), ((0,), 1)]:
        assert sampler.observe([came_out("p0", *rewards)])["sampler/rested"] == rested


@pytest.mark.parametrize("kind", ["shuffled", "as_given", "prioritised"])
def test_when_all_rest_the_next_epochs_come_early(kind: str) -> None:
    """Nothing waits for ever: the epochs in which all rest are empty."""
    sampler = sampler_of(PROBLEMS[:2], kind, rest={"visits": 1, "epochs": 3})
    sampler.next(2)
    sampler.observe([came_out("p0", 0), came_out("p1", 0)])
    assert {name for name, _ in ids(sampler.next(2))} == {"p0", "p1"}
    assert 4 <= sampler.epoch <= 6


@pytest.mark.parametrize("kind", ["shuffled", "as_given", "prioritised"])
def test_no_positive_resampling(kind: str) -> None:
    """ScaleRL: a problem that has reached the pass rate is never drawn again, not even when a completion to an earlier
    visit comes in late and was wrong; when all have, the run stops and says why."""
    sampler = sampler_of(PROBLEMS[:3], kind, retire_at=0.75, memory=1.0)
    assert sampler.observe([came_out("p1", 1, 1, 1, 0), came_out("p2", 1, 1, 0, 0)])["sampler/retired"] == 1.0
    assert sampler.observe([came_out("p1", 0, 0, 0, 0)])["sampler/retired"] == 1.0
    assert {sampler.next(1)[0][0].id for _ in range(100)} == {"p0", "p2"}
    assert sampler.observe([came_out("p2", 1, 1, 1, 1), came_out("p0", 1, 1, 1, 1)])["sampler/retired"] == 3.0
    with pytest.raises(SamplerExhausted, match=r"all 3 training problems.*retire_at = 0.75.*higher retire_at"):
        sampler.next(1)


def test_an_epoch_of_retired_hard_problems_is_the_end_although_easy_ones_are_left() -> None:
    sampler = sampler_of(graded_problems(0.9, 0.1), "curriculum", hardest=0.5, warmup_epochs=0, retire_at=0.5)
    sampler.observe([came_out("p1", 1)])
    with pytest.raises(SamplerExhausted, match="all 1 hardest training problems"):
        sampler.next(1)


# -------------------------------------------------------------------------------------------------------------- state


@st.composite
def samplers(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["shuffled", "as_given", "curriculum", "prioritised"]))
    options: dict[str, Any] = {"kind": kind, "seed": draw(st.integers(0, 3))}
    if kind == "curriculum":
        options |= {"warmup_epochs": draw(st.integers(0, 2)), "hardest": draw(st.sampled_from([0.3, 1.0]))}
    if draw(st.booleans()):
        options["rest"] = {"visits": draw(st.integers(1, 2)), "epochs": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        options["retire_at"] = draw(st.sampled_from([0.5, 1.0]))
    return options | {"memory": draw(st.sampled_from([0.0, 0.3, 1.0]))}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(samplers(), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2), st.booleans()), max_size=20))
def test_a_run_that_is_interrupted_anywhere_draws_what_it_would_have(
    options: dict[str, Any], steps: list[tuple[int, int, bool]]
) -> None:
    """Theorem: with its state put through JSON into a fresh sampler at any points between draws and observations, a
    run draws the same (problem, visit) pairs, never one twice; visits count up."""
    problems = graded_problems(0.1, 0.2, 0.2, 0.5, 0.9, 0.9, 1.0)
    whole, broken = sampler_of(problems, **options), sampler_of(problems, **options)
    seen: Counter[str] = Counter()
    for count, luck, is_interrupted in steps:
        try:
            drawn = whole.next(count)
        except SamplerExhausted as error:
            with pytest.raises(SamplerExhausted, match=str(error)[:40]):
                broken.next(count)
            break
        assert ids(broken.next(count)) == ids(drawn)
        for problem, visit in drawn:
            assert visit == seen[problem.id]
            seen[problem.id] = visit + 1
        results = [
            came_out(problem.id, *(float((hash_of(problem.id, visit, g) + luck) % 3 > 0) for g in range(3)))
            for problem, visit in drawn
        ]
        if is_interrupted:
            broken = reloaded(broken, problems, options)
        assert whole.observe(results) == broken.observe(results)
        if is_interrupted:
            broken = reloaded(broken, problems, options)
    assert whole.state_dict() == broken.state_dict()


def hash_of(name: str, visit: int, member: int) -> int:
    return sum(name.encode()) + 7 * visit + member * visit


def reloaded(sampler: ProblemSampler, problems: Sequence[Problem], options: dict[str, Any]) -> ProblemSampler:
    """A fresh sampler with the state of another, as a checkpoint's JSON brings it."""
    fresh = sampler_of(problems, **options)
    fresh.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    return fresh


def test_a_state_is_a_copy() -> None:
    """What happens after `state_dict` does not reach into it: a run that SIGTERM ends goes back to before its draw."""
    sampler = prioritised()
    state = sampler.state_dict()
    before = json.dumps(state)
    drawn = ids(sampler.next(3))
    sampler.observe([came_out("p1", 1, 1)])
    assert json.dumps(state) == before
    sampler.load_state_dict(state)
    assert ids(sampler.next(3)) == drawn


@pytest.mark.slow
def test_a_run_that_has_solved_everything_stops_and_says_so(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 problems, 4 a step, every completion right: three steps retire all, the fourth has nothing to draw."""
    workspace.write("easy.py", EASY)
    workspace.recipe["rewards"]["terms"][0]["verifier"] = "easy:Always"
    workspace.recipe["problems"]["sampler"] = {"type": "prioritised", "retire_at": 0.9}
    workspace.recipe["algorithm"] = {"filter": {"type": "keep"}}
    assert workspace.run("run.save_every=1") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "nothing is left to draw: all 12 training problems have reached a success rate of" in said
    lines = read_metrics(workspace.results())
    assert [line["sampler/retired"] for line in lines] == [4.0, 8.0, 12.0]
    assert [line["sampler/success_rate"] for line in lines] == [1.0, 1.0, 1.0]


EASY = """
from rewards import Outcome, Verdict


class Always:
    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        return Verdict(1.0, Outcome.CORRECT, {})
"""
