"""From where a run goes on, and in what it may differ: on checkpoints of a few bytes, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import ones

from rlvr.config import Recipe, RecipeError
from rlvr.state.checkpoint import Checkpoint, CheckpointError
from rlvr.state.resume import NothingToDo, check_recipe, check_unfinished, find_checkpoint, restored
from tests.builders import make_recipe, recipe_data
from tests.state.test_checkpoint import flip, register_of, save


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def checkpoints(folder: Path, *steps: int) -> list[Path]:
    register, _ = register_of(a={"x": 1})
    extra = {"recipe": make_recipe().model_dump(mode="json", by_alias=True), "processes": 1}

    def policy(draft: Path) -> None:
        save_file({"weight": ones(1)}, draft / "model.safetensors")

    return [save(folder, step, policy, register, Accelerator(cpu=True), extra=extra, keep=9) for step in steps]


def find(folder: Path, resume: str | Path, **run: Any) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    recipe = make_recipe(resume=str(resume), **run)
    return find_checkpoint(recipe, folder, said.append, Accelerator(cpu=True)), said


def test_the_words_and_an_empty_folder(tmp_path: Path) -> None:
    assert find(tmp_path, "auto") == (None, [])
    assert find(tmp_path, "never") == (None, [])
    (tmp_path / "metrics.jsonl").touch()  # opened, and nothing written
    assert find(tmp_path, "never") == (None, [])
    with pytest.raises(RecipeError, match=r"run\.resume: must, but .* holds no checkpoint"):
        find(tmp_path, "must")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert find(tmp_path, "auto") == (None, [])
    with pytest.raises(RecipeError, match=r"run\.resume: never, but .* holds a run already"):
        find(tmp_path, "never")


def test_the_words_and_a_run(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1, 3)
    for word in ("auto", "must"):
        found, said = find(tmp_path, word)
        assert found is not None
        assert (found.step, said) == (3, [])
    with pytest.raises(RecipeError, match="holds a run already"):
        find(tmp_path, "never")


def test_back_to_a_step_of_its_own_sets_later_ones_aside(tmp_path: Path) -> None:
    paths = checkpoints(tmp_path, 1, 2, 3)
    found, said = find(tmp_path, paths[1])
    assert found is not None
    assert found.step == 2
    assert said == ["run.resume: back to step 2; step_000003 is kept as step_000003.abandoned"]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if not path.is_symlink())
    assert names == ["step_000001", "step_000002", "step_000003.abandoned"]


def test_another_run_is_where_it_starts_and_not_where_it_goes_on(tmp_path: Path) -> None:
    """By the other's checkpoint or by its folder; once it has checkpoints of its own it goes on from those."""
    other = checkpoints(tmp_path / "other", 4, 7)
    for place, step in ((other[0], 4), (tmp_path / "other", 7)):
        found, said = find(tmp_path / "own", place)
        assert found is not None
        assert (found.step, said) == (step, [])
    checkpoints(tmp_path / "own", 2)
    found, said = find(tmp_path / "own", other[0])
    assert found is not None
    assert found.step == 2
    assert "this run has checkpoints of its own" in said[0]
    assert other[1].is_dir()  # nothing of the other run is set aside


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'atuo' is neither a checkpoint.*did you mean 'auto'"):
        find(tmp_path, "atuo")
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    with pytest.raises(RecipeError, match="empty holds no checkpoint"):
        find(tmp_path / "own", tmp_path / "empty")


def test_a_damaged_checkpoint_of_another_run_is_never_set_aside(tmp_path: Path) -> None:
    paths = checkpoints(tmp_path / "other", 4, 7)
    flip(paths[1] / "state.pt", 3)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        find(tmp_path / "own", tmp_path / "other")
    assert paths[1].is_dir()


@pytest.mark.parametrize("place", ["own", "other"])
def test_an_older_format_is_a_model_and_no_run_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("rlvr.state.saver.FORMAT", 2)
    checkpoints(tmp_path / "own", 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"has format 2, runs go on from format 3.*model\.path="):
        find(tmp_path / place, "auto" if place == "own" else tmp_path / "own")


def checkpoint(processes: int = 1, step: int = 2) -> Checkpoint:
    extra = {"recipe": make_recipe().model_dump(mode="json", by_alias=True), "processes": processes}
    return Checkpoint(path=Path("runs/test/checkpoints/step_000002"), step=step, extra=extra)


def changed(**sections: dict[str, Any]) -> Recipe:
    data = recipe_data()
    return Recipe.model_validate(data | {name: data[name] | values for name, values in sections.items()})


def test_what_may_change_is_said_and_what_may_not_is_refused_all_at_once(accelerator: Accelerator) -> None:
    said: list[str] = []
    check_recipe(make_recipe(), checkpoint(), accelerator, said.append)
    assert said == []
    check_recipe(changed(learner={"lr": 0.5}, run={"threads": 3}), checkpoint(), accelerator, said.append)
    assert said == [
        "changed since the checkpoint: learner.lr: 1e-05 -> 0.5",
        "changed since the checkpoint: run.threads: None -> 3 (sums in another order: exact in distribution, not to "
        "the last bit)",
    ]
    with pytest.raises(RecipeError) as refused:
        check_recipe(
            changed(learner={"optimizer": "adamw_8bit", "lr": 0.5}, run={"seed": 7}), checkpoint(), accelerator, print
        )
    message = str(refused.value)
    assert "  learner.optimizer: 'adamw' -> 'adamw_8bit'\n  run.seed: 0 -> 7\nset them back" in message
    assert "learner.lr" not in message


def test_another_number_of_processes_is_said(accelerator: Accelerator) -> None:
    said: list[str] = []
    check_recipe(make_recipe(), checkpoint(processes=4), accelerator, said.append)
    assert len(said) == 1
    assert said[0].startswith("the checkpoint was written by 4 processes, this run has 1")


def test_a_run_whose_last_step_is_done_has_nothing_to_do() -> None:
    check_unfinished(make_recipe(steps=3), checkpoint(step=2))
    for steps in (1, 2):
        with pytest.raises(NothingToDo, match=rf"step 2 of {steps} is done already.*run\.steps={2 + steps} goes on"):
            check_unfinished(make_recipe(steps=steps), checkpoint(step=2))


def test_what_was_restored_in_words() -> None:
    state = {"run": {"state": {"done": 2}}, "learner": {"state": {"updates": 8, "random": []}}}
    assert restored(checkpoint(), state) == [
        "goes on after step 2, from runs/test/checkpoints/step_000002; restored: policy",
        "  run: done 2",
        "  learner: updates 8, random",
    ]
