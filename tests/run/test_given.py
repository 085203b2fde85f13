"""What is not there is told before torch is imported; what cannot be loaded is told without a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import Workspace, elsewhere
from tests.test_architecture import run_blocked

HEAVY = "torch transformers accelerate vllm datasets"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sft", "quickstart"], "sft: the recipe has no such section"),
        (["dpo", "quickstart"], "dpo: the recipe has no such section"),
        (["sft", "quickstart", "sft={path: none.jsonl, steps: 1}"], "sft.path: 'none.jsonl' does not exist"),
        (["eval", "quickstart", "problems.eval=[]"], "problems.eval: the recipe names no eval set"),
        (
            ["train", "quickstart", "problems.train={type: jsonl, path: train.json}"],
            "problems.train.path: 'train.json' does not exist (did you mean 'train.jsonl'?); relative paths start at ",
        ),
        (
            ["eval", "quickstart", "problems.eval.0.source={type: benchmark, name: gsm8k, path: x.jsonl}"],
            "problems.eval.0.source.path: 'x.jsonl' does not exist",
        ),
        (["train", "quickstart", "problems.difficulty=hard.jsonl"], "problems.difficulty: 'hard.jsonl' does not exist"),
        (["train", "quickstart", "model.path=/nowhere/x"], "model.path: there is no folder '/nowhere/x'"),
        (["train", "quickstart", "model.path=models/b"], "no folder 'models/b'; models holds a; give"),
        (["train", "quickstart", "model.path=models/a"], "it has no config.json, it holds notes.txt"),
        (["export", "models", "out"], "checkpoint: models is no checkpoint, nor a run's folder that holds one"),
        (["export", "models", "models"], "output: models exists already"),
    ],
)
def test_what_is_not_there_is_told_at_once(tmp_path: Path, words: list[str], said: str) -> None:
    """In a process that cannot import anything heavy; status 2 and the sentence."""
    (tmp_path / "models/a").mkdir(parents=True)
    (tmp_path / "models/a/notes.txt").touch()
    (tmp_path / "train.jsonl").touch()
    run_blocked(
        HEAVY,
        "import contextlib, io, os\nfrom rlvr.__main__ import main\n"
        f"os.chdir({str(tmp_path)!r})\nerror = io.StringIO()\n"
        f"with contextlib.redirect_stderr(error):\n    status = main({words!r})\n"
        f"assert (status, {said!r} in error.getvalue()) == (2, True), error.getvalue()\n",
    )


@pytest.mark.slow
def test_a_sound_recipe_says_something_before_the_slow_imports(tmp_path: Path) -> None:
    run_blocked(
        HEAVY,
        "import contextlib, io\nfrom rlvr.__main__ import main\nerror = io.StringIO()\n"
        "with contextlib.redirect_stderr(error), contextlib.suppress(ImportError):\n    main(['train', 'quickstart'])\n"
        "assert error.getvalue() == 'rlvr train: loading torch and transformers\\n', error.getvalue()\n",
    )


def no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


def cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def not_a_model(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_tokenizer, "model.path: 'model' has no tokenizer that transformers can load"),
        (broken_tokenizer, "model.path: 'model' has no tokenizer that transformers can load"),
        (cut_short, "model.path: model/model.safetensors cannot be read"),
        (no_weights, "model.path: 'model' holds a config.json and no weights"),
        (not_a_model, "model.path: 'model' is no model that transformers can read"),
    ],
)
@pytest.mark.usefixtures("nothing_left")
def test_a_model_that_cannot_be_loaded_is_told_without_a_trace(
    workspace: Workspace, spoil: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(workspace.folder / "model")
    assert workspace.run() == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    with elsewhere(workspace.folder):
        assert not Path("runs").exists()
