"""What `rlvr merge` reads: which models, by which method, with which coefficients. The names are mergekit's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlvr.config.base import NonNegativeInt, Section
from rlvr.config.load import load_section

MergeMethod = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
Rescale = Literal["density", "l1", "none"]

_TAKES = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "task_arithmetic": ("weight", "normalize", "lambda"),
    "ties": ("weight", "density", "normalize", "lambda"),
    "dare_linear": ("weight", "density", "normalize", "lambda", "rescale"),
    "dare_ties": ("weight", "density", "normalize", "lambda", "rescale"),
}
"""The parameters of each method."""

_NORMALIZED = ("linear", "ties")
"""Methods that divide by the sum of the weights unless told otherwise, as in mergekit."""


class FilteredValue(Section):
    """The value for the tensors whose name contains a text."""

    filter: str | None = None
    """Part of the tensors' names, such as ``self_attn`` or ``layers.0.``; null for all that no entry above matched."""
    value: float | tuple[float, ...]
    """A number, or a list that is spread over the layers."""


def _coefficient(value: Any) -> Any:
    """A coefficient in its form. Raises `ValueError` for what is none."""
    if value is None or _is_number(value):
        return value
    if _is_list(value, _is_number):
        return tuple(map(float, value))
    if not _is_list(value, lambda entry: isinstance(entry, dict)):
        raise ValueError(f"must be a number, a list of numbers or a list of {{filter, value}}, got {value!r}")
    for entry in value:
        number = entry.get("value")
        if not (set(entry) <= {"filter", "value"} and (_is_number(number) or _is_list(number, _is_number))):
            raise ValueError(f"each entry must be {{filter: part of a name, value: number or list}}, got {entry!r}")
        if not isinstance(entry.get("filter", ""), str | None):
            raise ValueError(f"filter must be a text, got {entry['filter']!r}")
    if value[-1].get("filter") is not None or any(entry.get("filter") is None for entry in value[:-1]):
        raise ValueError("the last entry, and no other, must have no filter: it is for all other tensors")
    return tuple(FilteredValue(filter=entry.get("filter"), value=_coefficient(entry["value"])) for entry in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(holds, value))


Coefficient = Annotated[
    float | tuple[float, ...] | tuple[FilteredValue, ...] | None, BeforeValidator(_coefficient), Field(default=None)
]
"""A number; or a list of numbers, spread over the layers from first to last and interpolated between; or a list of
``{filter, value}``, of which the first whose filter is part of the tensor's name counts."""


class ModelParameters(Section):
    """The coefficients of one model."""

    weight: Coefficient = None
    """Its share. Every method but ``slerp`` needs it."""
    density: Coefficient = None
    """Which part of its difference from the base is kept, above 0 and up to 1: the largest entries in ``ties``, random
    ones in ``dare_linear`` and ``dare_ties``."""


class MergeParameters(ModelParameters):
    """Coefficients of the merge; `weight` and `density` are for the models that name none themselves."""

    t: Coefficient = None
    """``slerp``: the way from the base (0) to the other model (1)."""
    lambda_: Annotated[float, Field(alias="lambda")] = 1.0
    """Factor of the merged difference before it is added to the base."""
    normalize: bool | None = None
    """Divide by the sum of the weights; null means yes for ``linear`` and ``ties``, no for the others."""
    rescale: Rescale = "density"
    """What makes up for the entries that DARE drops. ``density`` divides by the density, as the paper does: the
    expectation is the difference itself. ``l1`` keeps the sum of absolute values, as mergekit does."""


class MergeModel(Section):
    """One of the models."""

    model: str
    """Hugging Face folder, or a name on the hub."""
    parameters: ModelParameters = ModelParameters()


class MergeConfig(Section):
    """One merge."""

    merge_method: MergeMethod
    base_model: str | None = None
    """The common ancestor, for all methods but ``linear``; in ``slerp`` it is one of the two models."""
    models: Annotated[tuple[MergeModel, ...], Field(min_length=1)]
    """What is merged. The base may be listed too, without parameters, as in mergekit's files."""
    parameters: MergeParameters = MergeParameters()
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the merged weights; null keeps that of the models. The arithmetic is in float32."""
    tokenizer_source: str | None = None
    """Which of the models gives tokenizer, chat template and generation config; null is the base, or the first."""
    seed: NonNegativeInt = 0
    """Of the entries that DARE drops."""

    @property
    def merged(self) -> tuple[MergeModel, ...]:
        """The models without the base, which may be listed among them."""
        return tuple(model for model in self.models if model.model != self.base_model)

    @property
    def normalize(self) -> bool:
        """Whether to divide by the sum of the weights."""
        given = self.parameters.normalize
        return self.merge_method in _NORMALIZED if given is None else given

    @property
    def sources(self) -> tuple[str, ...]:
        """Every model once, the base first."""
        base = (self.base_model,) if self.base_model is not None else ()
        return tuple(dict.fromkeys([*base, *(model.model for model in self.models)]))

    def coefficient(self, name: Literal["weight", "density"], index: int) -> Any:
        """`weight` or `density` of the model at `index` of `merged`: its own, else that of the merge."""
        own = getattr(self.merged[index].parameters, name)
        return getattr(self.parameters, name) if own is None else own

    @model_validator(mode="after")
    def _fits_the_method(self) -> MergeConfig:
        method, takes = self.merge_method, _TAKES[self.merge_method]
        if method == "linear" and self.base_model is not None:
            raise ValueError(
                f"base_model: linear has no base, got {self.base_model!r}; list it under models with a weight"
            )
        if method != "linear" and self.base_model is None:
            raise ValueError(f"base_model: this key is missing; {method} needs the {_ROLE[method == 'slerp']}")
        count = len(self.merged)
        if method == "linear" and count < 2:
            raise ValueError(f"models: linear merges two models or more, got {count}")
        if method == "slerp" and count != 1:
            raise ValueError(f"models: slerp goes from base_model to exactly one other model, got {count} others")
        if count == 0:
            raise ValueError("models: only the base is listed; list a model that differs from it")
        if self.tokenizer_source is not None and self.tokenizer_source not in self.sources:
            raise ValueError(
                f"tokenizer_source: {self.tokenizer_source!r} is none of the models: {', '.join(self.sources)}"
            )
        for index, model in enumerate(self.models):
            self._check_parameters(f"models.{index}.parameters", model.parameters, takes, model.model)
        self._check_parameters("parameters", self.parameters, takes, None)
        for name in ("weight", "density"):
            for index, model in enumerate(self.merged):
                if name in takes and self.coefficient(name, index) is None:
                    place = self.models.index(model)
                    raise ValueError(f"models.{place}.parameters.{name}: this key is missing; {method} needs it")
        if "t" in takes and self.parameters.t is None:
            raise ValueError("parameters.t: this key is missing; 0 is the base, 1 the other model, 0.5 the middle")
        return self

    def _check_parameters(self, key: str, parameters: ModelParameters, takes: Sequence[str], model: str | None) -> None:
        """Refuse what the method does not use, and values outside its range."""
        fields = type(parameters).model_fields
        given = [
            fields[name].alias or name
            for name in sorted(parameters.model_fields_set)
            if getattr(parameters, name) is not None
        ]
        for name in given:
            if model is not None and model == self.base_model:
                raise ValueError(f"{key}.{name}: the base has no {name}: differences from it are what is merged")
            if name not in takes:
                raise ValueError(f"{key}.{name}: {self.merge_method} has no {name}; it takes {', '.join(takes)}")
        for value in numbers_of(parameters.density):
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{key}.density: must be above 0 and at most 1, got {value}")
        for value in numbers_of(getattr(parameters, "t", None)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{key}.t: must be from 0 to 1, got {value}")
        negative = [value for value in numbers_of(parameters.weight) if value < 0.0]
        if negative and self.normalize and self.merge_method in ("ties", "dare_ties"):
            raise ValueError(
                f"{key}.weight: must not be negative, got {negative[0]}: {self.merge_method} divides each entry by the "
                "weights that agree on its sign, which can then be close to 0; or set parameters.normalize: false"
            )


_ROLE = {False: "common ancestor of the models", True: "model at t = 0"}


def numbers_of(coefficient: Any) -> list[float]:
    """Every number in a coefficient of any form."""
    if coefficient is None:
        return []
    entries = coefficient if isinstance(coefficient, tuple) else (coefficient,)
    values = [entry.value if isinstance(entry, FilteredValue) else entry for entry in entries]
    return [float(number) for value in values for number in (value if isinstance(value, tuple) else (value,))]


def load_merge(path: Path, overrides: Sequence[str] = ()) -> MergeConfig:
    """Read, override and check a merge. Raises `RecipeError` listing what is wrong."""
    return load_section(MergeConfig, path, overrides)
