"""Each rule on rollouts made by hand: what it finds, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlvr.view.index import Index
from rlvr.view.queries import Rollouts
from rlvr.view.suspects import suspects
from tests.view.runs_by_hand import line, write

USUAL = "one two three four five six seven eight nine ten eleven <answer>{}</answer>"


def rules(folder: Path, records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each rule says of a run."""
    folder.mkdir(exist_ok=True)
    index = Index(write(folder / "rollouts.jsonl", records))
    index.catch_up()
    return {rule["rule"]: rule for rule in suspects(Rollouts(index))}


def usual(count: int = 20) -> list[dict[str, Any]]:
    """Completions of 100 tokens with reasoning, each its own; every other one wrong."""
    return [
        line(1, n, 0, text=USUAL.format(n), tokens=100, reward=float(n % 2),
             outcomes={"answer": "CORRECT" if n % 2 else "WRONG"})
        for n in range(count)
    ]  # fmt: skip


def spots(rule: dict[str, Any]) -> list[tuple[int, int]]:
    return [(row["group"], row["sample"]) for row in rule["rows"]]


def test_nothing_unusual(tmp_path: Path) -> None:
    assert {name: rule["count"] for name, rule in rules(tmp_path, usual()).items()} == {
        "short": 0, "repeated": 0, "unreasoned": 0,
    }  # fmt: skip


def test_short_and_right(tmp_path: Path) -> None:
    """25 tokens where 100 are usual; not 26, and not one with a low reward."""
    more = [line(2, n, 0, text=USUAL.format(f"s{n}"), tokens=tokens, reward=reward)
            for n, (tokens, reward) in enumerate([(25, 1.0), (26, 1.0), (5, 0.5), (3, 0.9)])]  # fmt: skip
    short = rules(tmp_path, usual() + more)["short"]
    assert spots(short) == [(3, 0), (0, 0)]
    assert short["count"] == 2


def test_completions_that_become_short_with_the_policy_are_no_suspects(tmp_path: Path) -> None:
    """From 100 tokens to 10 over 40 steps; a jump from 100 to 10 is one, until it has become the habit."""

    def run(tokens: Callable[[int], int]) -> list[dict[str, Any]]:
        return [line(step, n, 0, text=USUAL.format(f"{step} {n}"), tokens=tokens(step), reward=float(n % 2))
                for step in range(1, 41) for n in range(4)]  # fmt: skip

    assert rules(tmp_path / "slow", run(lambda step: round(100 * 0.1 ** (step / 40))))["short"]["count"] == 0
    jump = rules(tmp_path / "jump", run(lambda step: 100 if step <= 20 else 10))["short"]
    assert {row["step"] for row in jump["rows"]} == set(range(21, 26))


def test_repeated_under_different_references(tmp_path: Path) -> None:
    """Three references are suspect; two are not, nor many completions to one problem, nor a wrong one everywhere."""
    more = [line(2, group, 0, text=USUAL.format("hack"), tokens=100) for group in range(3)]
    more += [line(2, group, 1, text=USUAL.format("two"), tokens=100) for group in range(2)]
    more += [line(2, 0, sample, text=USUAL.format("one"), tokens=100) for sample in range(2, 9)]
    more += [line(2, group, 9, text=USUAL.format("wrong"), tokens=100, reward=0.0) for group in range(9)]
    repeated = rules(tmp_path, usual() + more)["repeated"]
    assert spots(repeated) == [(0, 0)]
    assert repeated["rows"][0]["why"] == "3 times, for 3 problems with 3 references"


def test_without_reasoning(tmp_path: Path) -> None:
    """Eleven words stand before the usual answer: one word is suspect, two are not."""
    more = [line(2, 0, 0, text="sure <answer>1</answer>", tokens=100),
            line(2, 1, 0, text="oh sure <answer>2</answer>", tokens=100)]  # fmt: skip
    found = rules(tmp_path, usual() + more)
    assert spots(found["unreasoned"]) == [(0, 0)]
    terse = [one | {"text": f"<answer>{n}</answer>"} for n, one in enumerate(usual())]
    assert "not this run's habit" in rules(tmp_path / "again", terse)["unreasoned"]["text"]


def test_verifiers_that_part(tmp_path: Path) -> None:
    """Reward 0.5, 0.5, 1 over three steps while the second term agrees with 4, 4 and 2 of 4; then with all of 4."""

    def said(right: bool) -> str:
        return "CORRECT" if right else "WRONG"

    def run(agreeing: int) -> list[dict[str, Any]]:
        return [
            line(step, n, 0, text=USUAL.format((step, n)), tokens=100, reward=float(right),
                 outcomes={"first": said(right), "second": said(right == agrees)})
            for step in (1, 2, 3) for n in range(4)
            for right, agrees in [(step == 3 or n < 2, step < 3 or n < agreeing)]
        ]  # fmt: skip

    parted = rules(tmp_path, run(2))["disagreeing"]
    assert parted["count"] == 2
    assert spots(parted) == [(3, 0), (2, 0)]
    assert parted["chart"] == {"x": [1, 2, 3], "reward": [0.5, 0.5, 1.0], "agreement": [1.0, 1.0, 0.5]}
    together = rules(tmp_path / "again", run(4))["disagreeing"]
    assert (together["count"], together["rows"]) == (0, [])
    assert "do not part" in together["text"]


def test_a_run_of_one_reward_has_no_suspects(tmp_path: Path) -> None:
    (rule,) = rules(tmp_path, [line(1, n) for n in range(5)]).values()
    assert "All 5 scored completions have the reward 1" in rule["text"]
