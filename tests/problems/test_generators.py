"""Generated problems: right references, held-out splits that never meet, the same problems for the same seed."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import Outcome
from rewards.countdown import CountdownVerifier
from rewards.gym import ReasoningGymVerifier
from rlvr.config.problems import Arithmetic, Countdown, ReasoningGym
from rlvr.problems import ProblemError, load_problems


def arithmetic(**keys: Any) -> Arithmetic:
    return Arithmetic.model_validate({"type": "arithmetic", **keys})


def countdown(**keys: Any) -> Countdown:
    return Countdown.model_validate({"type": "countdown", **keys})


def gym(**keys: Any) -> ReasoningGym:
    return ReasoningGym.model_validate({"type": "reasoning_gym", **keys})


def test_a_quarter_of_the_66_unordered_pairs_is_held_out() -> None:
    """Factors 2..12 make 66 unordered pairs; 16 are held out, and both orders of a pair are on the same side."""
    train = load_problems(arithmetic(held_out=0.25, split="train"))
    held = load_problems(arithmetic(held_out=0.25, split="eval"))
    train_keys, held_keys = {p.key for p in train}, {p.key for p in held}
    assert (len(train_keys), len(held_keys)) == (50, 16)
    assert not train_keys & held_keys
    assert len(train) + len(held) == 11 * 11
    asked = {(p.meta["a"], p.meta["b"]) for p in held}
    assert asked == {(b, a) for a, b in asked}
    assert {p.id for p in [*train, *held]} == {p.id for p in load_problems(arithmetic())}


def test_which_pairs_are_held_out_depends_on_the_seed_alone() -> None:
    def keys(**settings: Any) -> list[str]:
        return [p.key for p in load_problems(arithmetic(held_out=0.25, split="eval", **settings))]

    assert keys() == keys()
    assert keys() == keys(question="{b} {op} {a} = ?")
    assert keys() != keys(seed=1)


@pytest.mark.parametrize(
    ("operator", "first", "size"),
    [("*", ("What is 2*2?", "4"), 3), ("+", ("What is 2+2?", "4"), 3), ("-", ("What is 2-2?", "0"), 4)],
)
def test_operators(operator: str, first: tuple[str, str], size: int) -> None:
    problems = load_problems(arithmetic(operator=operator, low=2, high=3))
    assert (problems[0].prompt, problems[0].reference) == first
    assert len(problems) == 4
    assert len({p.key for p in problems}) == size  # 2-3 and 3-2 are two problems, 2*3 and 3*2 are one


def test_negative_operands_stand_in_parentheses() -> None:
    problems = {p.id: p for p in load_problems(arithmetic(operator="-", low=-1, high=0))}
    assert problems["arithmetic/0--1"].prompt == "What is 0-(-1)?"
    assert problems["arithmetic/0--1"].reference == "1"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"question": "What is {a}?"}, "needs the fields {a} and {b}"),
        ({"question": "{a}{b}{c}"}, "KeyError"),
        ({"question": "{a}{b}{"}, "no format string"),
        ({"question": "{a}{b}{}"}, "no format string"),
        ({"low": 0, "high": 2000}, "make 4004001 problems"),
        ({"low": 2, "high": 2, "held_out": 0.25, "split": "eval"}, "each split needs at least one"),
        ({"held_out": 1.0, "split": "train"}, "each split needs at least one"),
    ],
)
def test_arithmetic_that_cannot_be_asked_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemError, match="arithmetic") as caught:
        load_problems(arithmetic(**settings))
    assert said in str(caught.value)


def test_countdown_games_are_legal_solvable_and_all_different() -> None:
    problems = load_problems(countdown(size=300, numbers=[3, 5], low=2, high=50, target_high=60))
    assert len({p.key for p in problems}) == 300
    verifier = CountdownVerifier()
    lengths = set()
    for problem in problems:
        numbers, target = problem.reference["numbers"], problem.reference["target"]
        lengths.add(len(numbers))
        assert all(2 <= number <= 50 for number in numbers)
        assert 1 <= target <= 60
        assert f"{numbers}" in problem.prompt
        assert f"equals {target}." in problem.prompt
        completion = f"<answer>{problem.meta['solution']}</answer>"
        assert verifier.grade(completion, problem.reference).outcome is Outcome.CORRECT
    assert lengths == {3, 4, 5}


def test_countdown_splits_never_meet_whatever_their_sizes() -> None:
    train = load_problems(countdown(size=400, held_out=0.3, split="train", high=20))
    small = load_problems(countdown(size=50, held_out=0.3, split="eval", high=20))
    large = load_problems(countdown(size=200, held_out=0.3, split="eval", high=20))
    assert not {p.key for p in train} & {p.key for p in large}
    assert small == large[:50]
    assert [p.key for p in small] != [
        p.key for p in load_problems(countdown(size=50, held_out=0.3, split="eval", high=20, seed=1))
    ]


@pytest.mark.slow
def test_countdown_finds_games_of_a_small_share() -> None:
    """A held-out share of a fiftieth takes fifty times the draws, not an error."""
    source = Countdown(type="countdown", size=200, held_out=0.02, split="eval", seed=1)
    assert len({one.key for one in load_problems(source)}) == 200


def test_countdown_is_the_same_on_every_machine() -> None:
    keys = [p.key for p in load_problems(countdown(size=3, seed=7))]
    assert keys == ["countdown:9,32,90,95->8", "countdown:1,25,67->43", "countdown:26,33,44->15"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"numbers": [4, 3]}, "numbers must be"),
        ({"numbers": [1, 2]}, "numbers must be"),
        ({"low": 50, "high": 10}, "high must be at least low = 50"),
        ({"split": "eval"}, "needs held_out between 0 and 1"),
        ({"size": 100, "low": 1, "high": 1, "numbers": [2, 2]}, "found 2 different games"),  # 1+1 and 1*1 or 1/1
    ],
)
def test_countdown_that_cannot_be_played_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemError, match="countdown") as caught:
        load_problems(countdown(**settings))
    assert said in str(caught.value)


@pytest.mark.slow
def test_gym_problems_are_scored_by_their_own_scorer() -> None:
    """arc_agi's scorer compares tuples, which JSON would turn into lists: the reference has to keep them."""
    problems = load_problems(gym(dataset="arc_agi", size=3))
    assert len({p.id for p in problems}) == 3
    verifier = ReasoningGymVerifier()
    for problem in problems:
        verifier.check_reference(problem.reference)
        verdict = verifier.grade(f"<answer>{problem.reference['answer']}</answer>", problem.reference)
        assert verdict.outcome is Outcome.CORRECT


@pytest.mark.slow
def test_gym_problems_are_the_same_whatever_the_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """isomorphic_strings iterates over sets of strings: a child that inherited the hash seed would differ."""
    made = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        made.append(load_problems(gym(dataset="isomorphic_strings", size=3)))
    assert made[0] == made[1]


@pytest.mark.slow
def test_gym_settings_reach_the_data_set() -> None:
    problems = load_problems(gym(dataset="chain_sum", size=2, config={"min_terms": 6, "max_terms": 6}))
    assert all("'num_terms': 6" in p.reference["entry"] for p in problems)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset": "chain_sums"}, "no dataset 'chain_sums' (did you mean 'chain_sum'?)"),
        ({"dataset": "chain_sum", "config": {"min_terms": 9, "max_terms": 2}}, "AssertionError"),
        ({"dataset": "chain_sum", "config": {"size": 5}}, "config must not hold ['size']"),
    ],
)
def test_gym_mistakes_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemError, match="reasoning_gym") as caught:
        load_problems(gym(**settings))
    assert said in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProblemError, match=r"pip install 'rlvr\[gym\]'"):
        load_problems(gym(dataset="chain_sum"))
