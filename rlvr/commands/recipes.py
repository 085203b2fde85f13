"""`rlvr recipes`: list the shipped recipes, copy one to edit, or print its path."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from rlvr.config import RecipeError, nearest
from rlvr.shipped import PACKAGE, find_shipped, shipped_files, shipped_names, short_name


def run(arguments: argparse.Namespace) -> None:
    """List the shipped files, or copy one, or print where it is."""
    if arguments.action is None:
        width = max(map(len, shipped_names()))
        for name, path in shipped_files().items():
            print(f"{short_name(name):{width}}  {describe(path)}")
        return
    shipped = find_shipped(arguments.name)
    if shipped is None:
        near = nearest(arguments.name, shipped_names())
        raise RecipeError(f"rlvr has no recipe or launch file {arguments.name!r}{near}; `rlvr recipes` lists them")
    if arguments.action == "path":
        print(shipped)
    else:
        _copy(shipped, arguments.folder)


def describe(path: Path) -> str:
    """The first clause of a file's opening comment, and whether it has not been run yet."""
    comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    lines = [line.removeprefix("#").strip() for line in comment[0].splitlines()] if comment is not None else []
    kept = [line for line in lines if not line.startswith(("yaml-language-server", "!", "not yet run"))]
    clause = re.split(r"[:;] |(?<!\bDr)\. ", " ".join(kept), maxsplit=1)[0].rstrip(".")
    return clause + (" (not yet run)" if any(line.startswith("not yet run") for line in lines) else "")


def _copy(path: Path, folder: Path) -> None:
    """Write a shipped file and the files it needs; existing files are never overwritten."""
    files = {folder / _place(needed): needed.read_bytes() for needed in [path, *_needs(path)]}
    for target, content in files.items():
        if target.exists() and (target == folder / _place(path) or target.read_bytes() != content):
            raise RecipeError(f"{target} exists already; choose another folder, or remove it first")
    for target, content in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(target)


def _place(path: Path) -> Path:
    """The place of a copy within a folder: recipes at the top, launch files in ``launch/``, as commands name them."""
    place = path.relative_to(PACKAGE)
    return place.relative_to("recipes") if place.parts[0] == "recipes" else place


def _needs(path: Path) -> list[Path]:
    """The schema that editors look for and the template of a recipe; the launch files that a script names."""
    if path.suffix != ".yaml":
        text = path.read_text(encoding="utf-8")
        return [file for name, file in shipped_files().items() if name in text and file != path]
    if path.parent.name != "recipes":
        return []
    template = yaml.safe_load(path.read_text(encoding="utf-8"))["template"].get("path")
    return [path.with_name("schema.json"), *([path.parent / template] if template is not None else [])]
