"""Plug-ins: a user's own function or class for a slot of the recipe, named ``module:name``."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from rlvr.errors import InputError


class PlugInError(InputError, ValueError):
    """A plug-in cannot be found, or its arguments do not fit; the message names the path, the rule and the fix."""


NEEDED = ("rewards", "rlvr", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "vllm",
          "peft", "numpy", "pydantic", "yaml", "rich", "jinja2", "wandb", "tensorboard")  # fmt: skip
"""Modules that rlvr imports and a file of the user's may hide, because the current directory is searched first."""


def check_shadows(folder: Path) -> None:
    """Raise `PlugInError` for a file in `folder`, the first place where modules are looked for, that takes the name of
    a package that rlvr needs: ``rewards.py``, ``datasets.py``. Python's own message would be about circular imports."""
    for name in NEEDED:
        own = folder / name
        is_package = name in ("rewards", "rlvr") and (own / "__init__.py").is_file()
        if is_package and not (own / {"rewards": "verdict.py", "rlvr": "plugins.py"}[name]).is_file():
            hides = own
        elif (folder / f"{name}.py").is_file() and not is_package:  # Python prefers the package
            hides = folder / f"{name}.py"
        else:
            continue
        raise PlugInError(
            f"{hides} hides the package {name!r}, which rlvr needs: rename it, for example to my_{hides.name}, and "
            f"write 'my_{name}:...' where the recipe names something in it"
        )


def load_plugin(path: str, args: Mapping[str, Any], *, positional: int = 0) -> Callable[..., Any]:
    """The callable that ``path`` names, with ``args`` checked and bound to it: a function gets them as keyword
    arguments at each call, a class is constructed with them once.

    ``args`` are checked against the pydantic model ``Args`` that the object or, failing that, its module exports; with
    neither, against the signature. ``positional`` is how many values the caller itself passes to a function first. A
    module in the current directory is found. Raises `PlugInError`.
    """
    target, module = _find(path)
    model = getattr(target, "Args", None) or getattr(module, "Args", None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        try:
            checked = model.model_validate(dict(args))
        except ValidationError as error:
            raise PlugInError(f"arguments of plug-in {path!r} do not fit its model {model.__name__}: {error}") from None
        bound = {name: getattr(checked, name) for name in type(checked).model_fields}
    else:
        bound = dict(args)
    own = 0 if inspect.isclass(target) else positional
    try:
        inspect.signature(target).bind(*[None] * own, **bound)
    except TypeError as error:
        taken = list(inspect.signature(target).parameters)[own:]
        raise PlugInError(
            f"plug-in {path!r} does not take the arguments {sorted(bound)}: {error}; it takes "
            f"{own} values from rlvr and the arguments {taken}"
        ) from None
    if inspect.isclass(target):
        return cast(Callable[..., Any], target(**bound))
    return functools.partial(target, **bound)


def _find(path: str) -> tuple[Any, ModuleType]:
    """The object that ``path`` names and its module; the current directory is searched too."""
    from rewards.names import NameNotFound, load_named  # here, for `check_shadows` comes before rewards is imported

    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return load_named(path, only_callable=True)
    except NameNotFound as error:
        raise PlugInError(f"plug-in {error}") from None
