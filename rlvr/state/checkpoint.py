"""The layout of checkpoints on disk, and reading them: each is complete or absent, and each file is hashed.

    FOLDER/checkpoints/
        step_000010/          the policy in Hugging Face format, as its writer left it
            state.pt          everything that registered itself as stateful
            manifest.json     step, format, extra facts, and the SHA-256 of every other file
        latest -> step_000010 for people and other programs; loading goes by the folders themselves
        best -> step_000005   the same, under ``run.keep_best``

`rlvr.state.saver` writes them. What it leaves when it is interrupted has a name that starts with a dot; the next save
removes it. A folder found damaged is renamed ``.damaged``, one that a run went back before is renamed ``.abandoned``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

import rlvr.control as control
from rlvr.errors import RlvrError
from rlvr.state.register import StateRegister

FORMAT = 3
"""Version of the layout above. 1: no NumPy random state, nothing about recipe and processes. 2: problems drawn by other
rules, no groups on their way, no rules that watch. Older ones are models; no run goes on from them."""

T = TypeVar("T")

MANIFEST, STATE = "manifest.json", "state.pt"
_NAME = re.compile(r"step_(\d{6,})")


class CheckpointError(RlvrError, RuntimeError):
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
    format: int = FORMAT

    def state(self) -> dict[str, dict[str, Any]]:
        """What `StateRegister.state_dict` returned, tensors on the CPU."""
        state: dict[str, dict[str, Any]] = torch.load(self.path / STATE, map_location="cpu", weights_only=True)
        return state


def load_latest(
    folder: Path,
    say: Callable[[str], None],
    accelerator: Accelerator,
    *,
    on_damaged: Literal["previous", "stop"] = "previous",
) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder; None if there is none at all. All ranks call it, the main decides.

    Under ``previous`` a damaged one is named to `say`, renamed to ``step_NNNNNN.damaged`` and passed over for the one
    before it. Raises `CheckpointError` if all are damaged (a run must not start anew by accident), and under ``stop``
    if the newest is.
    """
    return decided_by_main(lambda: newest_whole(folder, say, on_damaged), accelerator)


def decided_by_main(decide: Callable[[], T], accelerator: Accelerator) -> T:
    """Call `decide` on the main process and return or raise its outcome on every rank."""
    outcome: Any = None
    if accelerator.is_main_process:
        try:
            outcome = decide()
        except (CheckpointError, ValueError) as error:
            outcome = error
    outcome = control.from_main(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    decision: T = outcome
    return decision


def restore(
    checkpoint: Checkpoint | None, register: StateRegister, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """Give every owner in the register its state back; ranks other than the main one restore the owners they have.

    The main process alone reads the file: other ranks get its values, and of its tensors the shapes (device meta), of
    which an owner fetches the data from rank 0 if it needs them. Returns what was restored, nothing without a
    checkpoint. Raises `CheckpointError` if it does not fit the run.
    """
    if checkpoint is None:
        return {}
    saved = checkpoint.state() if accelerator.is_main_process else {}
    outline = control.from_main(_outline(saved))
    if not accelerator.is_main_process:
        saved = {name: entry for name, entry in outline.items() if name in register.names()}
    try:
        register.load_state_dict(saved)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    return saved


def _outline(value: Any) -> Any:
    """A state whose tensors have shapes and no data."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, dict):
        return {key: _outline(inner) for key, inner in value.items()}
    return type(value)(map(_outline, value)) if isinstance(value, list | tuple) else value


def newest_whole(
    folder: Path, say: Callable[[str], None], on_damaged: Literal["previous", "stop"]
) -> Checkpoint | None:
    """As `load_latest`, on one process."""
    root = folder / "checkpoints"
    _recover(root)
    damaged = []
    for _, path in steps_in(root):
        try:
            return verify(path)
        except DamagedCheckpoint as error:
            if on_damaged == "stop":
                raise CheckpointError(
                    f"{error}; nothing was changed. run.on_damaged: previous sets it aside and goes on from the one "
                    "before it"
                ) from None
            damaged.append(str(error))
            say(f"{error}; it is set aside as {path.name}.damaged, and the one before it is used")
            set_aside(path, "damaged")
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
    manifest = read_manifest(path)
    if not 1 <= manifest["format"] <= FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {manifest['format']}, this rlvr reads 1 to {FORMAT}: it was written by a "
            "newer one, use that"
        )
    for name, wanted in manifest["files"].items():
        try:
            actual = sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"checkpoint {path}: {name} cannot be read ({error.strerror})") from None
        if actual != wanted:
            raise DamagedCheckpoint(f"checkpoint {path}: {name} is damaged (its hash is not the manifest's)")
    return Checkpoint(path=path, step=manifest["step"], extra=manifest["extra"], format=manifest["format"])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint; its files are not read. Raises `DamagedCheckpoint`."""
    try:
        text = (path / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(text)
        intact = text == manifest_bytes({key: value for key, value in manifest.items() if key != "sha256"})
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path}: {MANIFEST} cannot be read ({error})") from None
    if not intact:
        raise DamagedCheckpoint(f"checkpoint {path}: {MANIFEST} is damaged (it does not match its own hash)")
    return manifest


def manifest_bytes(body: dict[str, Any]) -> bytes:
    """The one spelling of a manifest, its own hash included: any changed byte is noticed."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def steps_in(root: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint in a folder ``checkpoints``, newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in root.glob("step_*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def set_aside(path: Path, why: str) -> None:
    """Rename a checkpoint so that it is no longer found; one set aside before for the same reason gives way."""
    aside = path.with_name(f"{path.name}.{why}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recover(root: Path) -> None:
    """Undo a replacement that was killed between its two renames; tidy up after one killed after them."""
    for aside in root.glob(".old_step_*"):
        target = root / aside.name.removeprefix(".old_")
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
