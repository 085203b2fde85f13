"""From a merge's settings to the folder of the merged model.

| step    | what happens                                                                | memory                   |
|---------|-----------------------------------------------------------------------------|--------------------------|
| check   | headers, settings and vocabularies are compared, coefficients evaluated     | no weights               |
| merge   | tensor by tensor: read from each model, merged in float32, cast and written | one tensor of each model |
| furnish | config, tokenizer and generation config are copied, `genome.json` written   |                          |
| rename  | the draft becomes the folder: it is whole or it is not there                |                          |
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr.config import RecipeError
from rlvr.config.merge import MergeConfig
from rlvr.dtypes import DTYPES
from rlvr.engines.weights import Manifest, write_weights
from rlvr.errors import RlvrError
from rlvr.merge.coefficients import Coefficients, coefficients_of
from rlvr.merge.models import COPIED, MergedModel, differing_settings, open_models
from rlvr.merge.operators import consensus, drop, linear, slerp, task_arithmetic, ties
from rlvr.state.checkpoint import sha256

GENOME = "genome.json"
INDEX = "model.safetensors.index.json"


class MergeError(RlvrError):
    """A merge that was begun and cannot be finished."""


def merge(config: MergeConfig, output: Path, say: Callable[[str], None] = print) -> Path:
    """Merge the models of `config` into the Hugging Face folder `output`, which is missing or empty, and return it.

    The files of weights are laid out as those of the base, or of the first model. Raises `RecipeError` if the models
    cannot be merged, before any weight is read, and `MergeError` at a tensor that is not finite.
    """
    models = open_models(config)
    first = next(iter(models.values()))
    dtype = config.dtype or first.dtype
    plan = coefficients_of(config, first.manifest.shapes, first.layers)
    _check_room(output, sum(map(prod, first.manifest.shapes.values())) * DTYPES[dtype].itemsize)
    differing = differing_settings(list(models.values()))
    furnisher = models[config.tokenizer_source or first.source]
    say(f"{config.merge_method}: {len(plan)} tensors of {len(models)} models, written in {dtype}")
    for name, values in differing.items():
        say(f"config.json: {name} is {first.config.get(name)!r} as in {first.source}; the models have {values}")
    draft = output.with_name(f".{output.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        weights = _write_weights(config, models, plan, dtype, draft)
        _furnish(first, furnisher, dtype, draft)
        genome = _genome(config, models, dtype, differing, weights)
        (draft / GENOME).write_text(json.dumps(genome, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"{output}: the merged model, {sum(file['bytes'] for file in weights.values()) / 2**20:.1f} MiB of weights")
    return output


def merge_tensor(
    config: MergeConfig, name: str, base: Tensor | None, tensors: Sequence[Tensor], coefficients: Coefficients
) -> Tensor:
    """One tensor by the method of `config`, in the dtype of what is given; `tensors` in the order of `config.merged`.

    `base` is None for ``linear`` alone. Which entries DARE drops depends on the seed, the name and the model's place
    in that order, on nothing else.
    """
    weights, scale, normalize = coefficients.weights, config.parameters.lambda_, config.normalize
    if base is None:
        return linear(tensors, weights, normalize=normalize)
    if config.merge_method == "slerp":
        return slerp(base, tensors[0], coefficients.t)
    differences = [tensor - base for tensor in tensors]
    if config.merge_method == "ties":
        return ties(base, differences, weights, coefficients.densities, scale=scale, normalize=normalize)
    if config.merge_method in ("dare_linear", "dare_ties"):
        differences = [
            drop(difference, density, _generator(config.seed, name, index), config.parameters.rescale)
            for index, (difference, density) in enumerate(zip(differences, coefficients.densities, strict=True))
        ]
    if config.merge_method == "dare_ties":
        return base + consensus(differences, weights, normalize=normalize) * scale
    return task_arithmetic(base, differences, weights, scale=scale, normalize=normalize)


def _generator(seed: int, name: str, model: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {model} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def _write_weights(
    config: MergeConfig, models: dict[str, MergedModel], plan: dict[str, Coefficients], dtype: str, draft: Path
) -> dict[str, dict[str, Any]]:
    """Write the merged tensors; size and hash of each file."""
    first = next(iter(models.values()))
    written = {}
    for file in dict.fromkeys(first.files.values()):
        shapes = {name: shape for name, shape in first.manifest.shapes.items() if first.files[name] == file}
        manifest = Manifest(shapes=shapes, tied=first.manifest.tied)
        with (draft / file).open("wb") as stream:
            write_weights(stream.fileno(), manifest, _merged(config, models, plan, shapes, dtype), DTYPES[dtype])
        written[file] = {"sha256": sha256(draft / file), "bytes": (draft / file).stat().st_size}
    if set(written) != {"model.safetensors"}:
        size = sum(map(prod, first.manifest.shapes.values())) * DTYPES[dtype].itemsize
        index = {"metadata": {"total_size": size}, "weight_map": first.files}
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return written


def _merged(
    config: MergeConfig,
    models: dict[str, MergedModel],
    plan: dict[str, Coefficients],
    names: Iterable[str],
    dtype: str,
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        base = models[config.base_model].tensor(name).float() if config.base_model is not None else None
        tensors = [models[model.model].tensor(name).float() for model in config.merged]
        tensor = merge_tensor(config, name, base, tensors, plan[name]).to(DTYPES[dtype])
        if not tensor.isfinite().all():
            given = {"base_model": base} if base is not None else {}
            given |= {model.model: tensor for model, tensor in zip(config.merged, tensors, strict=True)}
            bad = [source for source, tensor in given.items() if not tensor.isfinite().all()]
            why = f"so is that of {', '.join(bad)}" if bad else f"it does not fit {dtype}: write dtype: float32"
            raise MergeError(f"the merged {name} is not finite; {why}")
        yield name, tensor


def _furnish(first: MergedModel, furnisher: MergedModel, dtype: str, draft: Path) -> None:
    """Copy what a model's folder has beside its weights; config.json is that of the first model."""
    for pattern in COPIED:
        for file in sorted(furnisher.folder.glob(pattern)):
            shutil.copyfile(file, draft / file.name)
    settings = json.loads((first.folder / "config.json").read_text(encoding="utf-8"))
    settings["torch_dtype" if "torch_dtype" in settings else "dtype"] = dtype
    (draft / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _genome(
    config: MergeConfig,
    models: dict[str, MergedModel],
    dtype: str,
    differing: dict[str, dict[str, Any]],
    weights: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What was merged how, so that the merge can be repeated and recognised."""
    read = {
        source: {
            "folder": str(model.folder.resolve()),
            "sha256": {
                name: sha256(model.folder / name) for name in ["config.json", *sorted(set(model.files.values()))]
            },
        }
        for source, model in models.items()
    }
    return {
        "rlvr": metadata.version("rlvr"),
        "merge": config.model_dump(mode="json", by_alias=True, exclude_unset=True)
        | {"dtype": dtype, "seed": config.seed},
        "models": read,
        "config_differs": differing,
        "weights": weights,
    }


def _check_room(output: Path, needed: int) -> None:
    """Raise `RecipeError` unless the disk has room for the merged weights."""
    place = next(parent for parent in output.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RecipeError(
            f"output: {output} needs {needed / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB free; "
            "choose another disk"
        )
