"""`python -m rewards`: the contract of `grade`, and that `check` finds what is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def _run(*arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "rewards", *arguments],
        input=lines,
        capture_output=True,
        text=True,
        cwd=HERE,
        env=environment,
    )


def _grade(lines: list[Any], *options: str) -> tuple[int, list[dict[str, Any]]]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    ran = _run("grade", *options, lines=text)
    return ran.returncode, [json.loads(line) for line in ran.stdout.splitlines()]


MATH = ("--verifier", "rewards.math_answers:MathVerifier")


@pytest.mark.slow
def test_grade_answers_each_line_in_order() -> None:
    items = [{"completion": rf"\boxed{{{i}}}", "reference": str(i - i % 2)} for i in range(50)]
    status, out = _grade(items, *MATH)
    assert status == 0
    assert [line["score"] for line in out] == [1.0, 0.0] * 25
    assert [line["outcome"] for line in out] == ["CORRECT", "WRONG"] * 25
    assert all(line["detail"]["answer"] == str(i) and line["seconds"] >= 0 for i, line in enumerate(out))
    assert all(set(line) == {"score", "outcome", "detail", "seconds"} for line in out)


@pytest.mark.slow
def test_grade_takes_bare_answers_and_options_of_the_verifier() -> None:
    assert _grade([{"answer": "0.5", "reference": "1/2"}], *MATH)[1][0]["score"] == 1.0
    lenient = _grade([{"completion": "it is 5", "reference": "5"}], *MATH, "--extract", "lenient")
    assert lenient[1][0]["score"] == 1.0
    short = {"completion": "<answer>3+4</answer>", "reference": {"numbers": [3, 4, 5], "target": 7}}
    countdown = ("--verifier", "rewards.countdown:CountdownVerifier")
    assert _grade([short], *countdown)[1][0]["score"] == 0.0
    assert _grade([short], *countdown, "--use-all=false")[1][0]["score"] == 1.0


@pytest.mark.slow
def test_a_bad_line_gets_its_own_error_and_the_rest_is_graded() -> None:
    good = {"completion": r"\boxed{5}", "reference": "5"}
    lines = [good, "no json", {"reference": "5"}, {"completion": "x"}, [1], {"completion": 5, "reference": "5"}, good]
    status, out = _grade(lines, *MATH)
    assert status == 1
    assert len(out) == 7
    assert out[0]["score"] == out[6]["score"] == 1.0
    assert [line["line"] for line in out[1:6]] == [2, 3, 4, 5, 6]
    assert all("error" in line and "score" not in line for line in out[1:6])


@pytest.mark.slow
def test_hanging_and_crashing_answers_have_their_outcomes() -> None:
    items = [
        {"completion": order, "reference": 1} for order in ("fine", "hang", "exit", "raise", "bad reference", "fine")
    ]
    status, out = _grade(items, "--verifier", "pool_verifiers:Naughty", "--timeout", "0.5")
    assert status == 0
    wanted = ["CORRECT", "TIMEOUT", "CRASHED", "ERROR", "BAD_REFERENCE", "CORRECT"]
    assert [line["outcome"] for line in out] == wanted
    assert [line["score"] for line in out] == [1.0, -1.0, -1.0, None, None, 1.0]


def test_a_verifier_that_cannot_be_built_is_said_so() -> None:
    ran = _run("grade", "--verifier", "rewards.math_answer:MathVerifier")
    assert ran.returncode == 2
    assert "did you mean 'rewards.math_answers'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_check_passes_a_sound_verifier() -> None:
    ran = _run("check", "rewards.math_answers:MathVerifier")
    assert ran.returncode == 0, ran.stdout
    assert "power tower" in ran.stdout
    assert "0 findings" in ran.stdout


def test_check_finds_what_breaks_the_contract(tmp_path: Path) -> None:
    (tmp_path / "foolish.py").write_text(
        "import random\n"
        "from rewards import Outcome, Verdict\n"
        "class Foolish:\n"
        "    def check_reference(self, reference): len(reference)\n"
        "    def grade(self, completion, reference):\n"
        "        if len(completion) > 10000: raise OverflowError('long')\n"
        "        return Verdict(random.random(), Outcome.PARTIAL)\n"
    )
    references = tmp_path / "references.jsonl"
    references.write_text('{"reference": "5"}\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "rewards", "check", "foolish:Foolish", "--references", str(references)],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    for finding in (
        "not deterministic",
        "raised on text of the model: OverflowError",
        "a text without an answer earns",
        "check_reference(None) must raise BadReference or accept: TypeError",
        "the reference is not a right answer to itself",
    ):
        assert finding in ran.stdout


@pytest.mark.slow
def test_check_measures_what_can_be_had_without_work(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {a} + 5?", "answer": f"So it is {a + 5}.\n#### {a + 5}"} for a in range(20, 40)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = _run("check", "rewards.math_answers:MathVerifier", "--problems", str(problems))
    assert ran.returncode == 0
    assert "  0.00%  by copying" in ran.stdout
    assert "references: integer 100.0%" in ran.stdout
    ran = _run("check", "rewards.math_answers:MathVerifier", "--problems", str(problems), "--form", "any")
    assert ran.returncode == 1
    assert "FINDING  20 of 20 problems are solved by copying their text" in ran.stdout
    problems.write_text('{"text": "1 + 1"}\n')
    ran = _run("check", "rewards.math_answers:MathVerifier", "--problems", str(problems))
    assert (ran.returncode, "line 1 needs a problem" in ran.stderr) == (2, True)
