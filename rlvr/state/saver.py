"""Writes checkpoints: a snapshot in memory while the run pauses, then the files, in parallel to the following steps.

If no step follows, or ``run.background_save`` is false, there is no snapshot: the run pauses while its own tensors are
written, and needs no more memory.

| part            | runs in               | does                                                                   |
|-----------------|-----------------------|------------------------------------------------------------------------|
| `Saver.save`    | all ranks, the loop   | waits for the write before, copies every state and weight to the CPU   |
| the write       | a thread of rank 0    | writes beside the old ones, syncs, hashes, renames, removes old ones   |
| `Saver.wait`    | all ranks, the loop   | ends the write; what went wrong is raised on every rank, or warned of  |

The copies share no memory with the run, so that the next step cannot change what is being written.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

import rlvr.control as control
from rlvr.config import RunConfig
from rlvr.state.checkpoint import (
    FORMAT,
    MANIFEST,
    STATE,
    CheckpointError,
    DamagedCheckpoint,
    manifest_bytes,
    read_manifest,
    sha256,
    steps_in,
)
from rlvr.state.register import StateRegister


class Saver:
    """Writes the checkpoints of one run; every rank has one and calls `save` and `wait` at the same places."""

    def __init__(
        self,
        folder: Path,
        register: StateRegister,
        accelerator: Accelerator,
        settings: RunConfig,
        warn: Callable[[str, str], None],
        *,
        last: int | None = None,
    ) -> None:
        """`folder` is the run's, `warn` gets a name and a message where the recipe says to go on without, `last` is the
        step that the run goes on from."""
        self.last = last
        """The step that was saved last."""
        self._root, self._register, self._accelerator = folder / "checkpoints", register, accelerator
        self._settings, self._warn = settings, warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rlvr-checkpoint")
        self._pending: Future[str | None] | None = None
        if accelerator.is_main_process:
            self._tidy()

    def _tidy(self) -> None:
        """Set the links, and remove what is not to be kept: a process killed after a checkpoint may not have done
        so."""
        if saved := steps_in(self._root):
            try:
                _point(self._root, "latest", saved[0][1].name)
                self._prune()
            except OSError as error:
                self._warn("checkpoint_links", f"{self._root} cannot be tidied: {error}")

    def save(self, step: int, take_policy: Callable[[bool], Callable[[Path], None]], extra: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint of `step`; where nothing goes on beside it, end it too.

        `take_policy` is told whether to copy the policy's weights (all ranks call it) and returns what writes them into
        an empty folder; `extra` must be JSON. Raises as `wait` does, for the write before, and for this one where it is
        ended here; `TypeError` for a state that could not be loaded again.
        """
        self.wait()
        beside = self._settings.background_save and step < self._settings.steps
        state = self._register.state_dict()  # collective: the learner gathers what is spread over ranks
        write_policy = take_policy(beside)  # collective
        if self._accelerator.is_main_process:
            check_loadable(state, "state")
            snapshot = copy.deepcopy(state) if beside else state
            body = json.loads(json.dumps(dict(extra), allow_nan=False))
            self._pending = self._writer.submit(self._write, step, write_policy, snapshot, body)
        self.last = step
        if not beside:
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk.

        Raises `CheckpointError` on every rank if it could not be written (what was there before is then untouched), or
        warns, as ``run.on_disk_full`` says.
        """
        refused = control.from_main(self._outcome())
        if refused is None:
            return
        if self._settings.on_disk_full == "stop":
            raise CheckpointError(refused)
        self._warn("checkpoint_not_written", f"{refused}; going on without (run.on_disk_full: warn)")

    def close(self) -> None:
        """End the write and the thread; the run ends for another reason, so that a failure is only warned of."""
        if (refused := self._outcome()) is not None:
            self._warn("checkpoint_not_written", refused)
        self._writer.shutdown()

    def _outcome(self) -> str | None:
        """Why the write under way failed, once it has ended; None if it did not fail or there is none."""
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else None

    def _write(
        self, step: int, write_policy: Callable[[Path], None], state: dict[str, Any], extra: dict[str, Any]
    ) -> str | None:
        """Write one checkpoint and remove old ones; the reason if the disk does not take it."""
        root = self._root
        draft, target = root / f".draft_step_{step:06d}", root / f"step_{step:06d}"
        try:
            _clear(root, draft)
            write_policy(draft)
            _write_state(state, draft / STATE)
            _seal(draft, step, extra)
            _rename(draft, target)
            _point(root, "latest", target.name)
            self._prune()
        except (OSError, SafetensorError) as error:
            reason = _why_not_written(root, step, error)
            shutil.rmtree(draft, ignore_errors=True)
            return reason
        return None

    def _prune(self) -> None:
        """Remove all but the newest ``keep``, the best by ``keep_best`` and every ``keep_every``-th step's."""
        saved = steps_in(self._root)
        kept = {path for _, path in saved[: self._settings.keep]}
        if (every := self._settings.keep_every) is not None:
            kept |= {path for step, path in saved if step % every == 0}
        if (best := self._best(saved)) is not None:
            kept.add(best)
            _point(self._root, "best", best.name)
        for _, old in saved:
            if old not in kept:
                gone = old.with_name(f".gone_{old.name}")  # half removed, it must not look like a checkpoint
                old.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _best(self, saved: list[tuple[int, Path]]) -> Path | None:
        """The checkpoint whose own step had the best value; the newest of equals, None if no step had one."""
        settings = self._settings.keep_best
        if settings is None:
            return None
        values: list[tuple[float, int, Path]] = []
        for step, path in saved:
            try:
                value = read_manifest(path)["extra"].get("metrics", {}).get(settings.metric)
            except DamagedCheckpoint:
                continue
            if value is not None:
                values.append((value if settings.mode == "max" else -value, step, path))
        return max(values)[2] if values else None


def check_loadable(value: Any, where: str) -> None:
    """Refuse at saving what `torch.load(weights_only=True)` would refuse at loading, by its place."""
    if isinstance(value, Tensor) or type(value) in (type(None), bool, int, float, str, bytes):
        return
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            check_loadable(key, f"a key of {where}")
            check_loadable(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            check_loadable(inner, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} holds {type(value).__name__}: a state is made of JSON values and tensors")


def _clear(root: Path, draft: Path) -> None:
    """Make an empty draft, and remove what interrupted saves left."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in (*root.glob(".draft_*"), *root.glob(".gone_*")):
        shutil.rmtree(leftover)
    draft.mkdir()


def _write_state(state: dict[str, Any], path: Path) -> None:
    """torch.save, with a full disk as the `OSError` that it is: torch covers it up with a failed assertion."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _seal(draft: Path, step: int, extra: dict[str, Any]) -> None:
    """Hash and sync every file, then write the manifest."""
    files = {}
    for path in sorted(path for path in draft.rglob("*") if path.is_file()):
        files[path.relative_to(draft).as_posix()] = sha256(path)
        _sync(path)
    manifest = draft / MANIFEST
    manifest.write_bytes(manifest_bytes({"format": FORMAT, "step": step, "extra": extra, "files": files}))
    _sync(manifest)
    for directory in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
        _sync(directory)


def _rename(draft: Path, target: Path) -> None:
    """Move a finished draft to its final name; an existing one is set aside first and removed last."""
    aside = target.parent / f".old_{target.name}"
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    draft.rename(target)
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _point(root: Path, link: str, name: str) -> None:
    """Make `link` a link to `name` in one step; where links are not to be had, a text file that holds it."""
    draft = root / f".{link}"
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(name, target_is_directory=True)
    except OSError:
        draft.write_text(name + "\n")
    if (root / link).is_dir() and not (root / link).is_symlink():
        shutil.rmtree(root / link)  # a copy of the run's folder may have made a folder of the link
    draft.replace(root / link)
    _sync(root)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_not_written(root: Path, step: int, error: Exception) -> str:
    try:
        free = f"{shutil.disk_usage(root).free / 2**20:.0f} MiB free when it stopped"
    except OSError:
        free = "its folder is not there"
    steps = steps_in(root)
    remains = f"the last good one is {steps[0][1]}, untouched" if steps else "there is no earlier one"
    return f"the checkpoint of step {step} could not be written to {root}: {error} ({free}); {remains}"
