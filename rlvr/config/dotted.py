"""Flattens nested settings to dotted keys, the form in which the command line overrides them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Mapping[Any, Any], *, lists: bool = False, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value under its dotted key: ``{"learner": {"lr": 0.1}}`` gives ``("learner.lr", 0.1)``.

    With ``lists`` the items of a list are values of their own, numbered from 0; without, a list is one value. What is
    empty is a value too.
    """
    for key, value in values.items():
        inner = dict(enumerate(value)) if lists and isinstance(value, list) else value
        if isinstance(inner, Mapping) and inner:
            yield from flatten(inner, lists=lists, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
