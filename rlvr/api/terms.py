"""Turns rewards given as Python callables into reward terms: by name if a worker can import them, else pickled."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import cloudpickle

from rlvr.config import RecipeError

VERIFIERS = {
    "countdown": "rewards.countdown:CountdownVerifier",
    "math": "rewards.math_answers:MathVerifier",
    "r1_format": "rewards.format:R1FormatVerifier",
}
"""Short names of verifiers that come with rlvr."""


def make_terms(rewards: Sequence[Any], folder: Path) -> list[dict[str, Any]]:
    """One entry of ``rewards.terms`` for each reward; what no worker can import is pickled into `folder`.

    A reward is a function, a verifier class or object, the import path of one, a short name of `VERIFIERS`, or a dict
    with one of these under ``verifier`` and the recipe's other keys. Raises `RecipeError`.
    """
    if isinstance(rewards, str) or not isinstance(rewards, Sequence) or not rewards:
        raise RecipeError(f"rewards must be a list of functions, classes or import paths, got {rewards!r:.200}")
    terms: list[dict[str, Any]] = []
    for reward in rewards:
        given = dict(reward) if isinstance(reward, Mapping) else {"verifier": reward}
        if "verifier" not in given:
            raise RecipeError(f"rewards: {reward!r:.200} has no key 'verifier', which holds the function or class")
        target = given["verifier"]
        name = given.get("name") or _free_name(_name_of(target), [term["name"] for term in terms])
        verifier, args = _locate(target, name, folder)
        terms.append(given | {"name": name, "verifier": verifier, "args": {**given.get("args", {}), **args}})
    return terms


def _name_of(target: Any) -> str:
    name = target.rpartition(":")[2] if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    return re.sub(r"\W+", "_", name).strip("_") or "reward"


def _free_name(name: str, taken: Sequence[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _locate(target: Any, name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Import path of a verifier and the arguments it needs to be found. Raises `RecipeError`."""
    if isinstance(target, str):
        if ":" not in target and target not in VERIFIERS:
            raise RecipeError(
                f"rewards: {target!r} is neither module:name nor one of {', '.join(VERIFIERS)}, "
                "the short names of verifiers that come with rlvr"
            )
        return VERIFIERS.get(target, target), {}
    if not callable(target) and not hasattr(target, "grade"):
        raise RecipeError(f"rewards: {target!r:.200} is a {type(target).__name__}, neither function nor verifier")
    if (path := _import_path(target)) is not None:
        return path, {}
    try:
        pickled = cloudpickle.dumps(target)
    except Exception as error:  # whatever the objects say that it refers to
        raise RecipeError(
            f"rewards: {name!r} refers to something that cannot be sent to a grading process "
            f"({type(error).__name__}: {error}); create that inside the function, or move it to a module of its own"
        ) from error
    code = hash_of_code(target)
    folder.mkdir(parents=True, exist_ok=True)
    pickle_file = folder / f"{name}-{code}.pkl"
    pickle_file.write_bytes(pickled)
    return "rewards.functions:PickledVerifier", {"pickle_file": str(pickle_file), "code": code}


def _import_path(target: Any) -> str | None:
    """``module:name`` where a fresh process finds this very object under it."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not name.isidentifier() or module == "__main__":
        return None
    if getattr(sys.modules.get(module), "__spec__", None) is None:
        return None
    return f"{module}:{name}" if getattr(importlib.import_module(module), name, None) is target else None


def hash_of_code(target: Any) -> str:
    """Changes with what a function or class does, not with where it stands, its comments or the process it is in."""
    digest = hashlib.sha256()
    for text in _code_texts(target):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def _code_texts(target: Any) -> Iterator[str]:
    if isinstance(target, CodeType):
        yield target.co_code.hex()
        yield repr(target.co_names)
        yield from _code_texts(target.co_consts)
    elif isinstance(target, tuple):
        for item in target:
            yield from _code_texts(item)
    elif isinstance(target, frozenset):  # its order is another in each process
        yield repr(sorted(map(repr, target)))
    elif inspect.isfunction(target):
        yield from _code_texts((target.__code__, target.__defaults__))
    elif inspect.isclass(target):
        for name, value in vars(target).items():
            if inspect.isfunction(value) or (isinstance(value, _PLAIN) and not name.startswith("__")):
                yield name
                yield from _code_texts(value)
    elif isinstance(target, _PLAIN):
        yield repr(target)
    else:
        yield from _code_texts(type(target))


_PLAIN = (str, bytes, int, float, complex, type(None))
