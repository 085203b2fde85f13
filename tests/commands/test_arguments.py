"""What people type: overrides anywhere, the ways of other programs, a run's folder, a pipe that closes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlvr.__main__ import READER_GONE, main
from rlvr.config import json_schema
from tests.runs import ROOT, Workspace, elsewhere

SETTING = "run.steps=none"
"""An override that is refused as soon as the recipe is read."""


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command line that cannot be understood is told."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("words", [["--run.steps=3"], ["--run.steps", "3"], ["run.seed=1", "--run.steps", "3"]])
def test_a_setting_with_dashes_is_shown_without(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    for line in (["train", "quickstart", *words], ["doctor", "quickstart", *words]):
        assert "settings of the recipe are written without dashes: run.steps=3" in complaint(capsys, *line)


def test_an_option_that_is_no_setting_is_unrecognized(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --steps=3" in complaint(capsys, "train", "quickstart", "--steps=3")
    assert "unrecognized arguments: --run.steps=3" in complaint(capsys, "export", "a", "b", "--run.steps=3")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_overrides_may_stand_before_the_recipe(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe is found among them: its own complaint about the setting appears."""
    for line in ([SETTING, "quickstart"], ["quickstart", SETTING], ["run.seed=1", "quickstart", SETTING]):
        assert main([command, *line]) == 2
        assert "run.steps: Input should be a valid integer, got 'none'" in capsys.readouterr().err


def test_a_missing_recipe_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the recipe is missing: rlvr train RECIPE run.steps=3" in complaint(capsys, "train", "run.steps=3")
    assert "the following arguments are required: RECIPE\n" in complaint(capsys, "train")


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("learner.lr", ["learner.lr\n    number > 0; must be given\n"]),
        ("rewards.terms.0.weight", ["rewards.terms.0.weight\n    number; default: 1.0"]),
        ("run.keep", ["integer > 0; default: 2\n    Newest checkpoints kept."]),
        ("problems.train.path", ["(with type jsonl)", "(with type benchmark)\n    text or null"]),
        ("rollout.engine", ["type: vllm\n", "type: hf\n", "    max_batch\n"]),
        ("run.keep_best", ["its keys:\n", "    mode\n        max, min"]),
    ],
)
def test_schema_explains_a_key(capsys: pytest.CaptureFixture[str], key: str, parts: list[str]) -> None:
    assert main(["schema", key]) == 0
    said = capsys.readouterr().out
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("learner.lrr", "learner.lrr: unknown key (did you mean 'lr'?); known here: betas, "),
        ("rewards.terms.weigth", "rewards.terms.weigth: unknown key (did you mean 'weight'?)"),
        ("learner.lr.x", "learner.lr.x: unknown key; learner.lr is no section"),
        ("learner.0", "learner.0: unknown key"),
    ],
)
def test_schema_of_a_key_that_does_not_exist(capsys: pytest.CaptureFixture[str], key: str, said: str) -> None:
    assert main(["schema", key]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_schema_explains_every_key_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Each section at the recipe's top, and so each section below it that is printed with them."""
    for key in json_schema()["properties"]:
        assert main(["schema", key]) == 0
        assert capsys.readouterr().out.startswith(f"{key}\n    ")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["schema"], ["schema", "rollout"], ["recipes"]])
def test_a_reader_that_leaves_early_is_no_error(words: list[str], tmp_path: Path) -> None:
    """As behind ``| head``: nothing on standard error, and the status that shells give."""
    command = subprocess.Popen(
        [sys.executable, "-m", "rlvr", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    said = command.stderr.read().decode()
    command.stderr.close()
    assert (command.wait(timeout=60), said) == (READER_GONE, "")


@pytest.mark.slow
def test_eval_of_a_runs_folder_measures_what_it_trained(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last checkpoint, or its best where it has one; overrides work as with a recipe."""
    work = workspace
    work.write_problems([{"problem": f"Say {i}", "answer": "aeiou 13579"} for i in range(3)], "eval.jsonl")
    source = {"type": "jsonl", "path": "eval.jsonl"}
    work.recipe["problems"]["eval"] = [{"name": "few", "source": source, "samples": 2}]
    assert work.run("run.steps=2", "run.keep_best={metric: eval/few/reward}", "run.eval_every=1") == 0
    assert work.run("run.steps=1", "name=other") == 0
    with elsewhere(work.folder):
        capsys.readouterr()
        assert main(["eval", "runs/run", "problems.eval.0.samples=3", "--output", "out.jsonl"]) == 0
        assert "runs/run/checkpoints/best" in capsys.readouterr().out.replace("\n", "")
        assert len((work.folder / "out.jsonl").read_text().splitlines()) == 9
        assert main(["eval", "runs/other/"]) == 0
        assert "runs/other/checkpoints/latest" in capsys.readouterr().out.replace("\n", "")
        assert main(["train", "runs/run"]) == 2
        assert "is a run's folder; the recipe of that run is runs/run/recipe.yaml" in capsys.readouterr().err
        assert main(["eval", "recipe.yaml", "model.path=runs/run"]) == 2
        assert "model.path: 'runs/run' is a run's folder; the model that it trained is runs/run/checkpoints/latest" in (
            capsys.readouterr().err
        )


def test_eval_of_a_run_without_a_checkpoint_says_so(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.save_recipe()
    folder = workspace.results()
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    (folder / "recipe.yaml").write_text((workspace.folder / "recipe.yaml").read_text())
    with elsewhere(workspace.folder):
        assert main(["eval", "runs/run"]) == 2
    said = capsys.readouterr().err
    assert "runs/run holds no checkpoint" in said
    assert "`rlvr train runs/run/recipe.yaml` goes on with the run" in said
