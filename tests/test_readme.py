"""README.md keeps its word: its commands exist, its file map is the tree's, its verifier works."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import BadReference, Outcome, Verdict
from tests.documents import ROOT, commands, faults, fenced, file_map

README = (ROOT / "README.md").read_text(encoding="utf-8")
(MAP,) = [block for block in fenced(README, "") if "rlvr/" in block]
(VERIFIER,) = fenced(README, "python")


@pytest.mark.parametrize("command", commands(README))
def test_each_command_exists(command: str) -> None:
    assert faults(command) == []


def test_readme_shows_every_way_in() -> None:
    """Train alone and under accelerate, the two make targets, the graders: the parametrised test above saw them."""
    shown = commands(README)
    for start in ("make demo", "make test", "rlvr train", "accelerate launch", "python -m rewards check", "rlvr eval"):
        assert any(start in one for one in shown), start


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("make nothing", "no target 'nothing'"),
        ("rlvr trian RECIPE", "does not take"),
        ("rlvr train recipes/quickstart.yaml learner.lrr=1", "did you mean 'lr'"),
        ("rlvr train recipes/nosuch.yaml", "does not exist"),
        ("rlvr eval RECIPE --nosuch 3", "does not take"),
        ("accelerate launch --config_file launch/nosuch.yaml -m rlvr train RECIPE", "no launch file"),
        ("accelerate launch --config_file launch/cpu.yaml -m rlvr train recipes/nosuch.yaml", "does not exist"),
        ("accelerate launch --nosuch 1 --config_file launch/cpu.yaml -m rlvr train RECIPE", "does not know"),
        ("python -m nosuch grade", "no module 'nosuch'"),
        ("pip install rlvr", "unknown command"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, fault: str) -> None:
    assert any(fault in one for one in faults(command)), faults(command)


def test_the_file_map_names_what_is_there() -> None:
    named = dict(file_map(MAP))
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_files_named_in_the_descriptions_are_there_too() -> None:
    """``extract.py finds them`` beside ``math_answers.py`` means a file of the same folder."""
    for path, text in file_map(MAP):
        folder = (ROOT / path).parent if (ROOT / path).is_file() else ROOT / path
        for word in text.replace(",", " ").replace(";", " ").split():
            if word.endswith((".py", ".md", "/")):
                assert (folder / word).exists(), f"{path}: {word}"


def test_no_folder_is_missing_from_the_map() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    there = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__")) and path.name not in ignored
        and not path.name.endswith(".egg-info") and any(path.rglob("*.*"))
    }  # fmt: skip
    assert there <= set(dict(file_map(MAP)))


def verdicts() -> Iterator[Verdict]:
    """What README's verifier says to a few answers under every reference that it takes."""
    space: dict[str, object] = {}
    exec(VERIFIER, space)
    (verifier,) = (value() for value in space.values() if isinstance(value, type) and hasattr(value, "grade"))
    for reference in (3, 4, "4", "level", ["a"], {"answer": 4}, None):
        try:
            verifier.check_reference(reference)
        except BadReference:
            continue
        for completion in ("level", " Level\n", "4", r"\boxed{4}", "lever", "a", ""):
            yield verifier.grade(completion, reference)


def test_the_verifier_is_short_and_works() -> None:
    assert len(VERIFIER.splitlines()) <= 15
    given = list(verdicts())
    assert all(isinstance(one, Verdict) for one in given)
    assert {Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER} <= {one.outcome for one in given}


def test_the_walk_from_a_verifier_to_its_check(tmp_path: Path) -> None:
    """The verifier is saved under the name that README gives it and checked by the command that README shows."""
    (check,) = [one for one in commands(README) if "python -m rewards check" in one]
    module = check.partition("rewards check ")[2].partition(":")[0]
    assert f"`{module}.py`" in README
    (tmp_path / f"{module}.py").write_text(VERIFIER)
    shutil.copytree(ROOT / "rewards", tmp_path / "rewards", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        ["bash", "-c", check], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith("0 findings in 30 gradings"), done.stdout
    assert done.returncode == 0
