"""A tiny model that answers in R1's format, right about half of the time, and a sound recipe around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import make_tiny_model
from tests.runs import Workspace

NUMBERS = range(10, 34)
MATH = "rewards.math_answers:MathVerifier"
VERIFIERS = '''
import random
import time

from rewards import BadReference, Outcome, Verdict


def said(right):
    return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG)


class Anything:
    def check_reference(self, reference):
        if reference is None:
            raise BadReference("none")


class AlwaysOne(Anything):
    def grade(self, completion, reference):
        return said(True)


class AlmostAlwaysOne(Anything):
    """Easy: of the 24 numbers only 23 and 33 are wrong."""

    def grade(self, completion, reference):
        return said("23 </answer>" not in completion and "33 </answer>" not in completion)


class Coin(Anything):
    def grade(self, completion, reference):
        return said(random.random() < 0.5)


class Mood(Anything):
    """The same for the life of a process."""

    def __init__(self):
        self.key = random.random()

    def grade(self, completion, reference):
        return said(random.Random(f"{self.key}{completion}").random() < 0.5)


class NoThought(Anything):
    """A format check that forbids thinking aloud."""

    def grade(self, completion, reference):
        right = "<think>" not in completion and reference in completion
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.BAD_FORMAT)


class Broken(Anything):
    def grade(self, completion, reference):
        raise RuntimeError("no such table: answers")


class Returns(Anything):
    """What people return who have not read what a verifier returns."""

    def __init__(self, what):
        self.what = what

    def grade(self, completion, reference):
        async def later():
            return Verdict(1.0, Outcome.CORRECT)

        if self.what == "coroutine":
            return later()
        return {"bool": True, "none": None, "float": 1.0, "text": "1"}[self.what]


class NotANumber(Anything):
    def grade(self, completion, reference):
        return Verdict(float("nan"), Outcome.CORRECT)


class Hangs(Anything):
    def grade(self, completion, reference):
        while True:
            pass


class Leaves(Anything):
    def grade(self, completion, reference):
        raise SystemExit(3)


class Exact(Anything):
    """The completion has to be the reference, to the letter."""

    def grade(self, completion, reference):
        return said(completion.strip().removeprefix("The answer is ").strip(" .") == reference)
'''


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model fine-tuned to say `` <think> hm </think> <answer> 17 </answer>`` to ``Say 17``, and in four
    of ten cases another number."""
    folder = tmp_path_factory.mktemp("answering")
    work = Workspace(folder / "work", make_tiny_model(folder / "raw"))
    rows = [
        {"prompt": f"Say {n}", "completion": f" <think> hm </think> <answer> {n if i < 6 else other} </answer>"}
        for n in NUMBERS
        for i in range(10)
        for other in [NUMBERS[(n * 7 + i * 5) % len(NUMBERS)]]
    ]
    work.write_problems(rows, "sft.jsonl")
    work.recipe["sft"] = {"path": "sft.jsonl", "steps": 250, "batch_size": 48}
    work.recipe["learner"] = {"lr": 3.0e-3, "schedule": {"type": "linear"}}
    assert work.run(command="sft") == 0
    return work.results() / "policy"


@pytest.fixture
def clinic(tmp_path: Path, answering: Path) -> Workspace:
    """A workspace whose recipe is sound."""
    work = Workspace(tmp_path / "work", answering)
    work.write("verifiers.py", VERIFIERS)
    work.write_problems([{"problem": f"Say {n}", "answer": str(n)} for n in NUMBERS])
    work.recipe |= {
        "run": {"steps": 4, "output": "runs", "threads": 1},
        "template": {"type": "none", "stop": ["</answer>"]},
        "rewards": {
            "terms": [
                {"name": "accuracy", "verifier": MATH, "args": {"extract": "answer_tag"}},
                {"name": "format", "verifier": "rewards.format:R1FormatVerifier", "weight": 0.2},
            ]
        },
        "rollout": {
            "engine": {"type": "hf"}, "prompts_per_step": 4, "group_size": 8, "max_new_tokens": 64, "self_test": False,
        },
        "algorithm": {},
        "learner": {"lr": 1.0e-4},
    }  # fmt: skip
    return work


Diagnose = Callable[..., dict[str, Any]]


@pytest.fixture
def diagnose(clinic: Workspace, capsys: pytest.CaptureFixture[str]) -> Diagnose:
    """``rlvr doctor recipe.yaml --json ...`` as a dictionary, with grades by rule under ``rules``."""

    def run(*arguments: str, engine: bool = False) -> dict[str, Any]:
        capsys.readouterr()
        status = clinic.run("--json", *([] if engine else ["--no-engine"]), *arguments, command="doctor")
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert report["status"] == status
        return report | {"rules": {one["rule"]: one["grade"] for one in report["findings"]}}

    return run
