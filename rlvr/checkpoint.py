"""Checkpoints: written beside the old one, hashed, synced to disk and renamed, so that each is whole or not there.

    FOLDER/checkpoints/
        step_000010/          the policy in Hugging Face format, as its writer left it
            state.pt          everything that registered itself as stateful
            manifest.json     step, format, extra facts, and the SHA-256 of every other file
        latest -> step_000010 for people and other programs; loading goes by the folders themselves

An interrupted save leaves a folder whose name starts with a dot, which the next save removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor

from rlvr.state import StateRegister

FORMAT = 1
"""Version of the layout above."""

_NAME = re.compile(r"step_(\d{6,})")
_MANIFEST, _STATE = "manifest.json", "state.pt"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read; the message names the file and what is left."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not what its manifest says; the message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files were verified."""

    path: Path
    """Also the policy's folder."""
    step: int
    """Steps that were done when it was written."""
    extra: Mapping[str, Any]
    """What the saver wrote beside the state."""

    def state(self) -> dict[str, dict[str, Any]]:
        """What `StateRegister.state_dict` returned, tensors on the CPU."""
        state: dict[str, dict[str, Any]] = torch.load(self.path / _STATE, map_location="cpu", weights_only=True)
        return state


def save(
    folder: Path,
    step: int,
    write_policy: Callable[[Path], None],
    register: StateRegister,
    accelerator: Accelerator,
    *,
    extra: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` into run folder `folder` and remove all but the newest `keep`; all ranks call it.

    `write_policy` puts the policy's files into the empty folder it is given; `extra` must be JSON. Raises
    `CheckpointError` on every rank if the disk does not take it: the checkpoints that were there before are then
    untouched.
    """
    root = folder / "checkpoints"
    draft, target = root / f".draft_step_{step:06d}", root / f"step_{step:06d}"
    state = register.state_dict()  # collective: the learner gathers what is spread over ranks
    is_main = accelerator.is_main_process
    if is_main:
        _check_loadable(state, "state")
    problem = None
    try:
        if is_main:
            _clear(root, draft)
        write_policy(draft)  # collective
        if is_main:
            _write_state(state, draft / _STATE)
            _seal(draft, step, extra or {})
            _rename(draft, target)
            _point_latest(root, target.name)
    except (OSError, SafetensorError) as error:
        problem = _why_not_written(root, step, error)
        shutil.rmtree(draft, ignore_errors=True)
    if (problem := _from_main(problem, accelerator)) is not None:
        raise CheckpointError(problem)
    if is_main:
        for _, old in _found(root)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def load_latest(folder: Path, say: Callable[[str], None], accelerator: Accelerator) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder; None if there is none at all. All ranks call it, the main decides.

    A damaged one is named to `say`, renamed to ``step_NNNNNN.damaged`` and passed over for the one before it. Raises
    `CheckpointError` if all are damaged: a run must not start anew by accident.
    """
    found: Checkpoint | str | None = None
    if accelerator.is_main_process:
        try:
            found = _newest_whole(folder / "checkpoints", say)
        except CheckpointError as error:
            found = str(error)
    found = _from_main(found, accelerator)
    if isinstance(found, str):
        raise CheckpointError(found)
    return found


def restore(checkpoint: Checkpoint | None, register: StateRegister, accelerator: Accelerator) -> None:
    """Give every owner in the register its state back; ranks other than the main one restore the owners they have.

    Without a checkpoint nothing changes. Raises `ValueError` if the checkpoint does not fit the run.
    """
    if checkpoint is None:
        return
    saved = checkpoint.state()
    if not accelerator.is_main_process:
        saved = {name: entry for name, entry in saved.items() if name in register.names()}
    register.load_state_dict(saved)


def _newest_whole(root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    _recover(root)
    damaged = []
    for _, path in _found(root):
        try:
            return verify(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            say(f"{error}; it is set aside as {path.name}.damaged, and the one before it is used")
            _set_aside(path)
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {root} is whole ({'; '.join(damaged)}); to start anew, choose another run name or "
            "remove the folder"
        )
    return None


def verify(path: Path) -> Checkpoint:
    """Read the manifest of one checkpoint and every file that it lists.

    Raises `DamagedCheckpoint` naming the first file that is missing or differs, and `CheckpointError` for a format
    that this version of rlvr does not read.
    """
    try:
        text = (path / _MANIFEST).read_bytes()
        manifest = json.loads(text)
        intact = text == _manifest_bytes({key: value for key, value in manifest.items() if key != "sha256"})
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path}: {_MANIFEST} cannot be read ({error})") from None
    if not intact:
        raise DamagedCheckpoint(f"checkpoint {path}: {_MANIFEST} is damaged (it does not match its own hash)")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {manifest['format']}, this rlvr reads {FORMAT}")
    for name, wanted in manifest["files"].items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"checkpoint {path}: {name} cannot be read ({error.strerror})") from None
        if found != wanted:
            raise DamagedCheckpoint(f"checkpoint {path}: {name} is damaged (its hash is not the manifest's)")
    return Checkpoint(path=path, step=manifest["step"], extra=manifest["extra"])


def _from_main(value: Any, accelerator: Accelerator) -> Any:
    """What the main process holds, on every rank."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def _clear(root: Path, draft: Path) -> None:
    """Make an empty draft, and remove what interrupted saves left."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".draft_*"):
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


def _seal(draft: Path, step: int, extra: Mapping[str, Any]) -> None:
    """Hash and sync every file, then write the manifest."""
    files = {}
    for path in sorted(one for one in draft.rglob("*") if one.is_file()):
        files[path.relative_to(draft).as_posix()] = _sha256(path)
        _sync(path)
    manifest = draft / _MANIFEST
    manifest.write_bytes(_manifest_bytes({"format": FORMAT, "step": step, "extra": dict(extra), "files": files}))
    _sync(manifest)
    for directory in (draft, *(one for one in draft.rglob("*") if one.is_dir())):
        _sync(directory)


def _manifest_bytes(body: dict[str, Any]) -> bytes:
    """The one spelling of a manifest, its own hash included: any changed byte is noticed."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _rename(draft: Path, target: Path) -> None:
    """Put a finished draft in its place; one that stands there gives way and is never gone before."""
    aside = target.parent / f".old_{target.name}"
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    draft.rename(target)
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _recover(root: Path) -> None:
    """Undo a replacement that was killed between its two renames; tidy up after one killed behind them."""
    for aside in root.glob(".old_step_*"):
        target = root / aside.name.removeprefix(".old_")
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)


def _point_latest(root: Path, name: str) -> None:
    """Make ``latest`` a link to `name` in one step; where links are not to be had, a text file that holds it."""
    draft = root / ".latest"
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(name, target_is_directory=True)
    except OSError:
        draft.write_text(name + "\n")
    draft.replace(root / "latest")
    _sync(root)


def _found(root: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint, newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in root.glob("step_*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_loadable(value: Any, where: str) -> None:
    """Refuse at saving what `torch.load(weights_only=True)` would refuse at loading, by its place."""
    if isinstance(value, Tensor) or type(value) in (type(None), bool, int, float, str, bytes):
        return
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            _check_loadable(key, f"a key of {where}")
            _check_loadable(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            _check_loadable(inner, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} holds {type(value).__name__}: a state is made of JSON values and tensors")


def _why_not_written(root: Path, step: int, error: Exception) -> str:
    try:
        free = f"{shutil.disk_usage(root).free / 2**20:.0f} MiB free when it stopped"
    except OSError:
        free = "its folder is not there"
    found = _found(root)
    left = f"the last good one is {found[0][1]}, untouched" if found else "there is no earlier one"
    return f"the checkpoint of step {step} could not be written to {root}: {error} ({free}); {left}"
