"""Decides which checkpoint a run resumes from and whether its settings allow that, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import ValidationError

from rlvr.config import Recipe, RecipeError
from rlvr.config.dotted import flatten
from rlvr.config.load import nearest
from rlvr.errors import RlvrError
from rlvr.state.checkpoint import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    CheckpointError,
    decided_by_main,
    newest_whole,
    set_aside,
    steps_in,
    verify,
)

WORDS = ("auto", "must", "never")

MAY_CHANGE = {
    "name": "",
    "run.steps": "",
    "run.output": "",
    "run.eval_every": "",
    "run.save_every": "",
    "run.keep": "",
    "run.keep_best*": "",
    "run.keep_every": "",
    "run.background_save": "",
    "run.resume": "",
    "run.force": "",
    "run.on_*": "",
    "run.stop_on*": "",
    "run.trackers*": "",
    "run.project": "",
    "run.log_rollouts": "",
    "run.log_token_groups": "",
    "run.peak_tflops": "",
    "run.process_timeout": "",
    "run.threads": "sums in another order: exact in distribution, not to the last bit",
    "model.gradient_checkpointing": "",
    "model.kept_activations": "sums in another order: exact in distribution, not to the last bit",
    "model.compile": "sums in another order: exact in distribution, not to the last bit",
    "model.attention": "sums in another order: exact in distribution, not to the last bit",
    "template.path": "another file, or the same one in another place",
    "learner.*": "",
    "problems.eval*": "later evaluations are not comparable with earlier ones where an eval set changed",
    "problems.train.*": "the problems themselves are compared with the checkpoint's",
    "rewards.terms.*.args.pickle_file": "",
    "rewards.workers": "",
    "rewards.timeout": "",
    "rewards.memory_mb": "",
    "rewards.max_unscored": "",
    "rollout.engine*": "another engine or batch: exact in distribution, not to the last bit",
    "rollout.max_new_tokens": "",
    "rollout.self_test": "",
    "sft*": "",
    "dpo*": "",
    "select*": "",
}
"""Keys of the recipe, as patterns, in which a run may differ from its checkpoint, and what to know about it. All others
decide what is trained: the run would be another one."""

FIXED = ("learner.optimizer",)
"""Exceptions from the patterns: the checkpoint's state is of no use to another."""


class NothingToDo(RlvrError):
    """All steps of the recipe are done; the message says how to go on all the same."""

    exit_status = 0


def check_unfinished(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise `NothingToDo` if the checkpoint is that of the recipe's last step, or of a later one."""
    if checkpoint.step >= recipe.run.steps:
        raise NothingToDo(
            f"nothing to do: step {checkpoint.step} of {recipe.run.steps} is done already, in {checkpoint.path}; "
            f"run.steps={checkpoint.step + recipe.run.steps} goes on, another name=... starts anew"
        )


def find_checkpoint(
    recipe: Recipe, folder: Path, say: Callable[[str], None], accelerator: Accelerator
) -> Checkpoint | None:
    """The checkpoint that ``run.resume`` asks for, verified; None to start anew. All ranks call it, the main decides.

    Raises `RecipeError` where the word does not fit the folder, `CheckpointError` for what is damaged.
    """
    checkpoint: Checkpoint | None = decided_by_main(lambda: _resumable(_find(recipe, folder, say)), accelerator)
    return checkpoint


def _resumable(checkpoint: Checkpoint | None) -> Checkpoint | None:
    """The same. Raises `CheckpointError` for an older format."""
    if checkpoint is not None and checkpoint.format < FORMAT:
        raise CheckpointError(
            f"{checkpoint.path} has format {checkpoint.format}, runs go on from format {FORMAT}: an older rlvr wrote "
            "it, which drew its problems by other rules. Finish the run with that one, or start anew from its weights "
            f"under another name: name=... model.path={checkpoint.path}"
        )
    return checkpoint


def _find(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    wanted, on_damaged = recipe.run.resume, recipe.run.on_damaged
    if wanted not in WORDS:
        return _from_path(Path(wanted), folder, say, on_damaged)
    checkpoint = newest_whole(folder, say, on_damaged)
    if wanted == "must" and checkpoint is None:
        raise RecipeError(f"run.resume: must, but {folder} holds no checkpoint")
    log = folder / "metrics.jsonl"
    if wanted == "never" and (checkpoint is not None or (log.exists() and log.stat().st_size > 0)):
        raise RecipeError(f"run.resume: never, but {folder} holds a run already; choose another name or run.output")
    return checkpoint


def _from_path(path: Path, folder: Path, say: Callable[[str], None], on_damaged: Any) -> Checkpoint | None:
    """One checkpoint of this run (later ones are set aside), or one of another run to start from."""
    if not (path / MANIFEST).is_file() and not (path / "checkpoints").is_dir():
        raise RecipeError(
            f"run.resume: {str(path)!r} is neither a checkpoint, nor the folder of a run, nor one of "
            f"{', '.join(WORDS)}{nearest(str(path), WORDS)}"
        )
    saved = folder / "checkpoints"
    if (path / MANIFEST).is_file() and path.resolve().parent == saved.resolve():
        checkpoint = verify(path.resolve())
        for step, later in steps_in(saved):
            if step > checkpoint.step:
                set_aside(later, "abandoned")
                say(f"run.resume: back to step {checkpoint.step}; {later.name} is kept as {later.name}.abandoned")
        return checkpoint
    if (newest := newest_whole(folder, say, on_damaged)) is not None:
        say(f"run.resume: this run has checkpoints of its own, so it does not start from {path} again")
        return newest
    if (path / MANIFEST).is_file():
        return verify(path.resolve())
    foreign = newest_whole(path, say, "stop")
    if foreign is None:
        raise RecipeError(f"run.resume: {path} holds no checkpoint")
    return foreign


def check_recipe(recipe: Recipe, checkpoint: Checkpoint, accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """Say in what the recipe differs from the checkpoint's, key by key.

    Raises `RecipeError` with all keys that may not differ.
    """
    refused = []
    for key, (old, new) in differences(checkpoint.extra["recipe"], recipe).items():
        note = None if key in FIXED else _note(key)
        line = f"  {key}: {_shown(old)} -> {_shown(new)}"
        if note is None:
            refused.append(line)
        else:
            say(f"changed since the checkpoint:{line[1:]}" + (f" ({note})" if note else ""))
    if refused:
        raise RecipeError(
            f"the recipe differs from that of {checkpoint.path} in what a run may not change on its way:\n"
            + "\n".join(refused)
            + "\nset them back, or start a new run under another name (model.path takes the checkpoint's folder)"
        )
    before = checkpoint.extra["processes"]
    if before != accelerator.num_processes:
        say(
            f"the checkpoint was written by {before} processes, this run has {accelerator.num_processes}: the same "
            "samples and the same objective, summed in another order; exact in distribution, not to the last bit"
        )


def _note(key: str) -> str | None:
    return next((text for pattern, text in MAY_CHANGE.items() if fnmatchcase(key, pattern)), None)


def differences(saved: Mapping[str, Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Each key whose value differs, as ``{key: (old, new)}``; a key that is not there is `ABSENT`.

    Keys that rlvr has learned since have their default values in the older recipe.
    """
    with suppress(ValidationError):  # a recipe that today's rlvr does not read is compared as it was written
        saved = Recipe.model_validate_json(json.dumps(saved)).model_dump(mode="json", by_alias=True)
    old = dict(flatten(saved, lists=True))
    new = dict(flatten(recipe.model_dump(mode="json", by_alias=True), lists=True))
    values_of = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in sorted({*old, *new})}
    return {key: values for key, values in values_of.items() if values[0] != values[1]}


class _Absent:
    def __repr__(self) -> str:
        return "(not there)"


ABSENT = _Absent()


def _shown(value: Any) -> str:
    return repr(value) if not isinstance(value, bool) else str(value).lower()


def restored(checkpoint: Checkpoint, state: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describes what was restored from a checkpoint, one line per owner of state."""
    lines = [f"goes on after step {checkpoint.step}, from {checkpoint.path}; restored: policy"]
    for name, entry in state.items():
        parts = [f"{key} {value}" if isinstance(value, int | float) else key for key, value in entry["state"].items()]
        lines.append(f"  {name}: {', '.join(parts)}")
    return lines
