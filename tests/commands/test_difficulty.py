"""Difficulty: measured by the policy, written down, read again for the curriculum and to leave problems out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rewards import Outcome
from rlvr.commands.difficulty import answer_at_once, guesses_of, line_of
from rlvr.config import Recipe
from rlvr.problems.difficulty import add_difficulty, keep_in_range
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem
from tests.builders import make_group, make_rollout, recipe_data
from tests.runs import Workspace


def problem(name: str, **meta: Any) -> Problem:
    return Problem(id=name, prompt="?", reference="", key=f"key {name}", source=f"train.jsonl:{name}", meta=meta)


def written(folder: Path, *lines: dict[str, Any] | str) -> str:
    path = folder / "difficulty.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return str(path)


# ---------------------------------------------------------------------------------------------------------- measured


def test_a_line_by_hand() -> None:
    """Two of three judged completions are right, 3 + 4 + 5 + 8 tokens over four; the guesses are shares of their
    own."""
    outcomes = [(Outcome.CORRECT, 3), (Outcome.WRONG, 4), (Outcome.CORRECT, 5), (Outcome.ERROR, 8)]
    group = make_group(*(make_rollout(one, tokens=n, sample=i) for i, (one, n) in enumerate(outcomes)))
    assert line_of(group) == {"id": "p", "key": "p", "pass_rate": 2 / 3, "samples": 3, "mean_length": 5.0}
    assert guesses_of(group) == {"guess_rate": 2 / 3, "guesses": 3}


def test_what_was_not_scored_has_no_rate() -> None:
    group = make_group(make_rollout(Outcome.ERROR))
    assert line_of(group) == {"id": "p", "key": "p", "pass_rate": None, "samples": 0, "mean_length": None}
    assert guesses_of(group) == {"guess_rate": None, "guesses": 0}


@pytest.mark.parametrize(
    ("template", "prefill", "begin"),
    [
        ("r1_zero", "", " <think> </think> <answer>"),
        ("r1_zero_think", "<think>", " </think> <answer>"),
        ("chat", "", "The answer is \\boxed{"),
        ("chat", "<think>\n", "\n</think>\n\nThe answer is \\boxed{"),
        ("none", "", "\nThe answer is \\boxed{"),
    ],
)
def test_no_room_for_reasoning(template: str, prefill: str, begin: str) -> None:
    assert answer_at_once(template, prefill) == begin


GUESSER = """
from rewards import Outcome, Verdict


class Guesser:
    '''Right where the completion begins as the guess does, if the reference says that this one can be guessed.'''

    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        right = completion.startswith("at once ") and reference == "guess"
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {})
"""


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_generate_measures_what_training_then_reads(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A verifier that accepts only completions without reasoning, to two of five problems: pass rate 0 for all, guess
    rate 1 for these; training without them, hardest by mean length last."""
    workspace.write("guesser.py", GUESSER)
    workspace.recipe["rewards"]["terms"] = [{"name": "right", "verifier": "guesser:Guesser"}]
    rows = [{"problem": f"Say {a}", "answer": "guess" if a in "bd" else "reason"} for a in "abcde"]
    workspace.write_problems(rows)
    flags = ["--difficulty", "hard.jsonl", "--guess", "3", "--guess-begin", "at once ", "--guess-tokens", "2"]
    assert workspace.run(*flags, "--output", "out.jsonl", command="generate") == 0
    assert "2 of 5 problems are guessed without reasoning in 3 tries" in capsys.readouterr().out
    lines = [json.loads(line) for line in (workspace.folder / "hard.jsonl").read_text().splitlines()]
    assert [(one["pass_rate"], one["samples"], one["guess_rate"], one["guesses"]) for one in lines] == [
        (0.0, 4, 0.0, 3), (0.0, 4, 1.0, 3), (0.0, 4, 0.0, 3), (0.0, 4, 1.0, 3), (0.0, 4, 0.0, 3)
    ]  # fmt: skip
    texts = (workspace.folder / "out.jsonl").read_text()
    assert "at once" not in texts
    assert [one["id"] for one in lines] == [f"train:{n}" for n in range(1, 6)]

    workspace.recipe["problems"] |= {
        "difficulty": "hard.jsonl",
        "keep": {"guess_rate": [None, 0]},
        "sampler": {"type": "curriculum", "column": "mean_length", "easy": "low", "warmup_epochs": 0},
    }
    workspace.recipe["rollout"]["prompts_per_step"] = 3
    workspace.recipe["algorithm"] = {"filter": {"type": "keep"}}
    assert workspace.run("run.steps=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 5 training problems left out by problems.keep.guess_rate [, 0]" in said
    drawn = list(dict.fromkeys(one["problem_id"] for one in workspace.rollouts()))
    lengths = {one["id"]: one["mean_length"] for one in lines}
    assert set(drawn) == {"train:1", "train:3", "train:5"}
    assert [lengths[name] for name in drawn] == sorted(lengths[name] for name in drawn)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--guess", "3"], "--guess: what is guessed goes into the file of --difficulty"),
        (["--difficulty", "train.jsonl"], "--difficulty: train.jsonl exists already"),
        (["--difficulty", "d.jsonl", "--guess", "2", "--guess-begin", " "], "--guess-begin: an empty beginning"),
        (["--difficulty", "d.jsonl", "--guess", "2", "--guess-tokens", "500"], "do not fit into the model's 26"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert workspace.run(*flags, command="generate") == 2
    assert said in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- read


def test_measurements_join_by_key_and_add_up(tmp_path: Path) -> None:
    """Two measurements of one problem are one over all their completions: (0.5 * 4 + 1 * 2) / 6 = 2/3; one without
    scored completions adds nothing; what the problem already had stays, save what was measured."""
    path = written(
        tmp_path,
        {"key": "key a", "pass_rate": 0.5, "samples": 4, "mean_length": 10, "guess_rate": 0.0, "guesses": 8},
        {"key": "key a", "pass_rate": 1.0, "samples": 2, "mean_length": 40},
        {"key": "key a", "pass_rate": None, "samples": 0, "mean_length": None},
        {"key": "key b", "pass_rate": None, "samples": 0},
        {"key": "of no interest", "pass_rate": 1, "samples": 1},
    )
    a, b = add_difficulty([problem("a", level=3, pass_rate=9), problem("b")], path)
    assert a.meta == {"level": 3, "pass_rate": pytest.approx(2 / 3), "mean_length": 20.0, "guess_rate": 0.0}
    assert b.meta == {"pass_rate": None}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"pass_rate": 0.5, "samples": 4}, "difficulty.jsonl:1: key must be a problem's key, got None"),
        ({"key": "key a", "pass_rate": 0.5}, "samples must be a whole number of 0 or more beside pass_rate, got None"),
        ({"key": "key a", "pass_rate": "often", "samples": 4}, "pass_rate must be a finite number of 0 or more"),
        ({"key": "key a", "pass_rate": -1, "samples": 4}, "pass_rate must be a finite number of 0 or more, got -1"),
        ('{"key": "key a", "pass_rate": NaN, "samples": 4}', "finite number of 0 or more, got nan"),
        ({"key": "key a", "pass_rate": 0.5, "samples": 0}, "must be null where no completion was scored, got 0.5"),
        (
            {"key": "key b", "pass_rate": 0.5, "samples": 4},
            "does not know 1 of 1 training problems, the first is train",
        ),
        ("[]", "must hold one JSON object"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, line: dict[str, Any] | str, said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        add_difficulty([problem("a")], written(tmp_path, line))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="does not exist"):
        add_difficulty([problem("a")], str(tmp_path / "nosuch.jsonl"))


def test_ranges_leave_out_and_count() -> None:
    """Ends are included; a None column is in no range; each range sees what the ones before it have left."""
    problems = [
        problem("a", x=0.1, y=1),
        problem("b", x=0.9, y=2),
        problem("c", x=0.95, y=3),
        problem("d", x=None, y=1),
    ]
    kept, notes = keep_in_range(problems, {"x": (0.1, 0.9), "y": (2, None)})
    assert [one.id for one in kept] == ["b"]
    assert notes == [
        "2 of 4 training problems left out by problems.keep.x [0.1, 0.9], 1 of them because nothing is known of them",
        "1 of 2 training problems left out by problems.keep.y [2, ]",
    ]
    assert keep_in_range(problems[:2], {"x": (0, 1)}) == (problems[:2], [])


def test_ranges_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ProblemError, match=r"'pass_rat' that is not there.*did you mean 'pass_rate'"):
        keep_in_range([problem("a", pass_rate=1)], {"pass_rat": (0, 1)})
    with pytest.raises(ProblemError, match="must hold a number, got 'hard'"):
        keep_in_range([problem("a", level="hard")], {"level": (0, 1)})
    with pytest.raises(ProblemError, match=r"\[0.5, \] keeps none of 1 training problems; the first have 0.1"):
        keep_in_range([problem("a", x=0.1)], {"x": (0.5, None)})


@pytest.mark.parametrize("bounds", [[0.9, 0.1], [None, None]])
def test_an_empty_range_is_refused_in_the_recipe(bounds: list[float | None]) -> None:
    data = recipe_data()
    data["problems"]["keep"] = {"pass_rate": bounds}
    with pytest.raises(ValidationError, match=r"keep.pass_rate must be \[lowest, highest\]"):
        Recipe.model_validate(data)
