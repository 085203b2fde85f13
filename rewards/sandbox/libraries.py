"""Where installed libraries are: the few paths that programs must be able to read to import them, and no other ones."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable


class NotInstalled(ValueError):
    """A library that the interpreter of the sandbox cannot import."""


def locate(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What the libraries named by their import names, and all that they require, consist of.

    Returns: the directories to import from, and the files and directories in them. Raises `NotInstalled`.
    """
    directories: dict[str, None] = {}
    paths: dict[str, None] = {}
    distributions: list[str] = []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not (spec.submodule_search_locations or spec.has_location):
            raise NotInstalled(f"libraries: {name!r} is not installed here; install it, or leave it out")
        place = next(iter(spec.submodule_search_locations or [str(spec.origin)]))
        directories[os.path.dirname(os.path.abspath(place))] = None
        paths[os.path.abspath(place)] = None
        distributions.append(_distribution_of(name))
    done: set[str] = set()
    while distributions:
        found = _distribution(distributions.pop())
        if found is None or found.name in done:
            continue
        done.add(found.name)
        for file in found.files or ():
            if file.parts[0] != ".." and not file.parts[0].startswith("__"):
                path = os.path.abspath(str(found.locate_file(file.parts[0])))
                directories[os.path.dirname(path)] = None
                paths[path] = None
        for line in found.requires or ():
            if "extra ==" not in line and (match := re.match(r"[\w.-]+", line)):
                distributions.append(match[0])
    return list(directories), [path for path in paths if os.path.exists(path)]


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _distribution_of(name: str) -> str:
    """The distribution that holds a module: most are called as it is."""
    if _distribution(name) is not None:
        return name
    return next(iter(_by_module().get(name, ())), "")


@functools.cache
def _by_module() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
