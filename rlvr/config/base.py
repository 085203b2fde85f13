"""Base class of all recipe sections."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction01 = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values are fixed once read, field docstrings reach the schema."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class PlugIn(Section):
    """A slot filled by the user's own code: ``{type: "module:name", args: {...}}``."""

    type: ImportPath
    """Where the function or class lives."""
    args: dict[str, Any] = {}
    """Its arguments."""


def slot_tag(value: Any) -> str | None:
    """The tag of a slot: its ``type``, or ``plugin`` where that is an import path; None if it is no slot at all."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "plugin" if isinstance(kind, str) and ":" in kind else kind
