"""Weights on their way from learner to engine: parameters by name, checked against the model folder, in one file.

| call            | consumes                        | produces                        | fails when                     |
|-----------------|---------------------------------|---------------------------------|--------------------------------|
| `read_manifest` | a Hugging Face model folder     | names and shapes of its weights | the folder has no safetensors  |
| `checked`       | a manifest, a stream of tensors | the same stream, complete       | a name or shape is wrong       |
| `stored`        | a manifest, a model folder      | the stream of its own weights   |                                |
| `staged`        | a manifest, a stream of tensors | a path to a safetensors file    | room for the file is missing   |

The stream is read once and one tensor at a time, so that a sharded learner can gather its parameters one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rlvr.dtypes import SAFETENSORS_NAMES
from rlvr.engines.protocol import EngineError
from rlvr.hub import may_be_hub_name

_HEAD = "lm_head.weight"
_DERIVED = "rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names and shapes of a model's weights, as its folder has them, the copy of a tied head left out."""

    shapes: dict[str, tuple[int, ...]]
    tied: bool
    """The output head is the embedding: `lm_head.weight` is not a parameter of its own."""

    @property
    def embedding(self) -> str:
        """Name of the input embedding."""
        names = [name for name in self.shapes if name.endswith(("embed_tokens.weight", "wte.weight"))]
        return names[0] if names else ""


def read_manifest(folder: str | Path) -> Manifest:
    """Names and shapes from the headers of the folder's safetensors files; no weight is read.

    A name that is no folder is looked up on the hub. Raises `EngineError` if the weights are not there.
    """
    from transformers import AutoConfig

    folder, files = weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a mapping)
                shapes[name] = tuple(stored.get_slice(name).get_shape())
    tied = bool(AutoConfig.from_pretrained(folder).get_text_config().tie_word_embeddings)
    kept = {name: shape for name, shape in shapes.items() if not (name.endswith(_DERIVED) or (tied and name == _HEAD))}
    return Manifest(shapes=kept, tied=tied)


def stored(manifest: Manifest, folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """The weights that the model folder itself holds, one file at a time."""
    folder, files = weight_files(folder)
    for file in files:
        with safe_open(folder / file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                if name in manifest.shapes:
                    yield name, weights.get_tensor(name)


def weight_files(model: str | Path) -> tuple[Path, list[str]]:
    """The model's folder and its safetensors files. A name that is no folder is looked up on the hub.

    Raises `EngineError` if the folder, its config.json or a file of weights is not there.
    """
    from huggingface_hub import snapshot_download

    folder = Path(model)
    if not folder.is_dir():
        if not may_be_hub_name(str(model)):
            raise EngineError(f"there is no model folder {str(model)!r}; give a Hugging Face folder or owner/name")
        folder = Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.json"]))
    if not (folder / "config.json").is_file():
        raise EngineError(f"model folder {str(folder)!r} has no config.json; give a Hugging Face model folder")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    for file in files:
        if not (folder / file).is_file():
            raise EngineError(
                f"model folder {str(folder)!r} has no {file}; save_pretrained writes it in the safetensors format"
            )
    return folder, files


def checked(manifest: Manifest, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same stream, once each name of the manifest, with its shape; a tied head must equal the embedding.

    Raises `EngineError` at a name that is unknown, doubled or missing and at a shape that differs.
    """
    seen: set[str] = set()
    tied: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if manifest.tied and name in (_HEAD, manifest.embedding):
            tied[name] = tensor
            if len(tied) == 2 and not torch.equal(tied[_HEAD], tied[manifest.embedding]):
                raise EngineError(
                    f"the model's config ties {_HEAD!r} to {manifest.embedding!r} but the learner's two differ; "
                    "tie them in the learner or set tie_word_embeddings to false in the model folder"
                )
            if name == _HEAD:
                continue
        if name not in manifest.shapes:
            raise EngineError(f"weight {name!r} is not in the model folder; names are those of Hugging Face parameters")
        if name in seen:
            raise EngineError(f"weight {name!r} came twice")
        if tuple(tensor.shape) != manifest.shapes[name]:
            raise EngineError(
                f"weight {name!r} has shape {tuple(tensor.shape)}, the model folder has {manifest.shapes[name]}"
            )
        seen.add(name)
        yield name, tensor
    missing = sorted(manifest.shapes.keys() - seen)
    if missing:
        raise EngineError(f"{len(missing)} weights are missing, the first is {missing[0]!r}; send all in one call")


@contextlib.contextmanager
def staged(
    manifest: Manifest, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, folder: Path | None = None
) -> Iterator[str]:
    """Path of a safetensors file with the checked stream cast to `dtype`, gone when the block is left.

    Without a `folder` the file is anonymous memory (memfd): it ends with this process however that ends, and needs no
    /dev/shm, which containers keep small. Other processes of the same user and host open it by its path under /proc. In
    a `folder`, which other hosts may share, a killed process leaves its last file behind.
    """
    with _memory_file() if folder is None else _shared_file(folder) as (fd, path):
        write_weights(fd, manifest, checked(manifest, tensors), dtype)
        if folder is not None:
            os.fsync(fd)  # other hosts read it
        yield path


@contextlib.contextmanager
def _shared_file(folder: Path) -> Iterator[tuple[int, str]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(prefix="rlvr-weights-", suffix=".safetensors", dir=folder)  # noqa: SIM115
    except OSError as error:
        raise EngineError(f"rollout.engine.folder: {str(folder)!r} cannot be written: {error.strerror}") from error
    with file:
        os.chmod(file.fileno(), 0o644)  # a server may run as another user
        yield file.fileno(), str(folder.resolve() / file.name)


@contextlib.contextmanager
def _memory_file() -> Iterator[tuple[int, str]]:
    if hasattr(os, "memfd_create"):  # Linux
        fd = os.memfd_create("rlvr-weights")
        try:
            yield fd, f"/proc/{os.getpid()}/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.NamedTemporaryFile(prefix="rlvr-weights-") as file:
            yield file.fileno(), file.name


def write_weights(fd: int, manifest: Manifest, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Write a stream in the safetensors format, cast to `dtype`, in one pass: the shapes are known before.

    The format is 8 bytes for the header's length, a JSON header, then the data. Raises `EngineError` if there is no
    room for it.
    """
    header: dict[str, object] = {}
    offsets: dict[str, int] = {}
    end = 0
    for name, shape in manifest.shapes.items():
        offsets[name], end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": shape, "data_offsets": (offsets[name], end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    try:
        _write_at(fd, memoryview(len(text).to_bytes(8, "little") + text), 0)
        for name, tensor in tensors:
            data = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
            _write_at(fd, data.view(-1).view(torch.uint8).numpy().data, start + offsets[name])
    except OSError as error:
        raise EngineError(f"no room for a copy of the weights ({end / 2**30:.1f} GiB): {error}") from error


def _write_at(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written
