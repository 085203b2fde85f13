"""Everything that the objects of a run hold, flattened: what a resumed run has to have in common with one that was not
interrupted."""

from __future__ import annotations

import dataclasses
import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch

OURS = ("rlvr", "rewards", "tests")
"""Only objects of these packages are looked into; what libraries hold is their owners' business."""


def contents(root: object, skip: Mapping[str, str]) -> dict[str, str]:
    """Path of every value within `root` and what it is; `skip` names paths that are left out, each with a reason."""
    return dict(_walk(root, "", skip, set()))


def _walk(value: Any, path: str, skip: Mapping[str, str], seen: set[int]) -> Iterator[tuple[str, str]]:
    if path in skip:
        seen.add(id(value))  # nor is it looked into where it is met again
        return
    if isinstance(value, type(None) | bool | int | float | str | bytes):
        yield path, repr(value)
    elif id(value) in seen:
        return
    elif isinstance(value, torch.Tensor):
        whole = value.detach().double()
        yield path, f"{tuple(value.shape)} {float(whole.sum())!r} {float((whole * whole).sum())!r}"
    elif isinstance(value, torch.Generator):
        yield path, repr(hash(bytes(value.get_state().tolist())))
    elif isinstance(value, random.Random):
        yield path, repr(hash(value.getstate()))
    elif isinstance(value, dict | OrderedDict):
        seen.add(id(value))
        yield f"{path}#", str(len(value))
        for key, inner in value.items():
            yield from _walk(inner, f"{path}[{key}]", skip, seen)
    elif isinstance(value, list | tuple | deque):
        seen.add(id(value))
        yield f"{path}#", str(len(value))
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{index}]", skip, seen)
    elif isinstance(value, set | frozenset):
        yield path, repr(sorted(map(repr, value)))
    elif isinstance(value, torch.optim.Optimizer):
        yield from _walk(value.state_dict(), path, skip, seen)
    elif isinstance(value, torch.nn.Module):
        yield from _walk(dict(value.state_dict()), path, skip, seen)
    elif type(value).__module__.partition(".")[0] in OURS or hasattr(value, "optimizer"):  # accelerate's wrapper
        seen.add(id(value))
        for name, inner in _attributes(value):
            yield from _walk(inner, f"{path}.{name}", skip, seen)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    names += [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names += list(getattr(value, "__dict__", {}))
    return [(name, getattr(value, name)) for name in dict.fromkeys(names) if hasattr(value, name)]
