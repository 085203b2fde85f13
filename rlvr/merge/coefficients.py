"""The coefficients of each tensor: a setting that may vary by layer and by part, evaluated at a tensor's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlvr.config import RecipeError
from rlvr.config.merge import FilteredValue, MergeConfig
from rlvr.merge.operators import SMALLEST_SUM

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b")


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What one tensor is merged with; `weights` and `densities` in the order of `MergeConfig.merged`."""

    weights: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    t: float = 0.0


def position(name: str, layers: int) -> float:
    """Where in the model a tensor is: layer l of L at l / (L - 1), embeddings at 0, final norm and head at 1."""
    found = _LAYER.search(name)
    if found is None:
        return 0.0 if _EMBEDDING.search(name) else 1.0
    return int(found[1]) / (layers - 1) if layers > 1 else 0.0


def evaluate(setting: Any, name: str, layers: int) -> float:
    """A `Coefficient` at the tensor `name` of a model of so many `layers`.

    n numbers are values at positions 0, 1/(n-1), ..., 1, with straight lines between them (mergekit's gradients).
    """
    if not isinstance(setting, tuple):
        return float(setting)
    if isinstance(setting[0], FilteredValue):
        matching = next(entry for entry in setting if entry.filter is None or entry.filter in name)
        return evaluate(matching.value, name, layers)
    place = position(name, layers) * (len(setting) - 1)
    before = min(int(place), len(setting) - 1)
    after = min(before + 1, len(setting) - 1)
    return float(setting[before] + (place - before) * (setting[after] - setting[before]))


def coefficients_of(config: MergeConfig, names: Iterable[str], layers: int) -> dict[str, Coefficients]:
    """The coefficients of every tensor, checked.

    Raises `RecipeError` for weights that sum to 0 where they are divided by their sum, for weights that are all 0, and
    for a filter that is part of no tensor's name.
    """
    names = list(names)
    _check_filters(config, names)
    models = range(len(config.merged))
    planned = {}
    for name in names:
        if config.merge_method == "slerp":
            planned[name] = Coefficients(t=evaluate(config.parameters.t, name, layers))
            continue
        weights = tuple(evaluate(config.coefficient("weight", index), name, layers) for index in models)
        if abs(sum(weights)) < SMALLEST_SUM and (config.normalize or not any(weights)):
            why = "are divided by their sum" if config.normalize else "leave nothing to merge"
            fix = ", or set parameters.normalize: false" if config.normalize and any(weights) else ""
            raise RecipeError(
                f"models.*.parameters.weight: the weights {list(weights)} of {name} sum to 0 and {why}; "
                f"give weights that do not{fix}"
            )
        densities = [config.coefficient("density", index) for index in models]
        planned[name] = Coefficients(
            weights, tuple(evaluate(1.0 if density is None else density, name, layers) for density in densities)
        )
    return planned


def _check_filters(config: MergeConfig, names: list[str]) -> None:
    """Raise `RecipeError` for a filter that matches nothing: it was written for something."""
    settings = {"parameters.t": config.parameters.t}
    for key in ("weight", "density"):
        settings[f"parameters.{key}"] = getattr(config.parameters, key)
        for index, model in enumerate(config.models):
            settings[f"models.{index}.parameters.{key}"] = getattr(model.parameters, key)
    for key, setting in settings.items():
        for entry in setting if isinstance(setting, tuple) else ():
            if isinstance(entry, FilteredValue) and not any((entry.filter or "") in name for name in names):
                raise RecipeError(
                    f"{key}: the filter {entry.filter!r} is part of no tensor's name; one of them is {names[0]!r}"
                )
