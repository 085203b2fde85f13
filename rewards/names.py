"""Objects that settings name as ``module:name``, and the nearest right name for one that is wrong."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class NameNotFound(ValueError):
    """A name leads to no object; the message says which part of it does not, and the nearest right name."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the candidate most like ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def split_name(path: str) -> tuple[str, str]:
    """Module and name of ``module:name``. Raises `NameNotFound` for a path of another form."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise NameNotFound(f"{path!r} is not of the form 'module:name'")
    return module, name


def load_named(path: str, *, only_callable: bool = False) -> tuple[Any, ModuleType]:
    """Import the object that ``path`` names, ``module:name``, and its module.

    Raises `NameNotFound` where there is no such module or object, or, with ``only_callable``, none that can be called.
    What importing the module raises otherwise comes through, so that its author sees the traceback.
    """
    module_name, name = split_name(path)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (module_name == missing or module_name.startswith(missing + ".")):
            raise  # the module exists; something that it imports does not
        raise NameNotFound(
            f"{path!r}: there is no module {module_name!r}{nearest(module_name, _modules())}; modules are searched in "
            "the current directory and in the installed packages"
        ) from None
    found = getattr(module, name, None)
    if found is None or (only_callable and not callable(found)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        kind = "function or class " if only_callable else ""
        raise NameNotFound(f"{path!r}: module {module_name!r} has no {kind}{name!r}{nearest(name, known)}")
    return found, module


def _modules() -> list[str]:
    """The modules that a mistyped path could have meant: those of this package and those at the top of sys.path."""
    import rewards

    own = [f"rewards.{module.name}" for module in pkgutil.iter_modules(rewards.__path__)]
    return own + [module.name for module in pkgutil.iter_modules()]
