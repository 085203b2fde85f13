"""The recipes and launch files that come with rlvr: the folders ``rlvr/recipes`` and ``rlvr/launch``.

In a checkout both are links to the top-level ``recipes/`` and ``launch/``; a wheel contains the files themselves.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped_files() -> dict[str, Path]:
    """Every recipe and launch file by its name: ``recipes/quickstart.yaml``, ``launch/cpu.yaml``."""
    paths = [*sorted(PACKAGE.glob("recipes/*.yaml")), *sorted(PACKAGE.glob("launch/*.[ys]*"))]
    return {path.relative_to(PACKAGE).as_posix(): path for path in paths}


def shipped_names() -> list[str]:
    """The names that a user types: recipes without folder and suffix, launch files as ``launch/cpu.yaml``."""
    return [short_name(name) for name in shipped_files()]


def short_name(name: str) -> str:
    """``quickstart`` for ``recipes/quickstart.yaml``; a launch file's name stays as it is."""
    return name.removeprefix("recipes/").removesuffix(".yaml") if name.startswith("recipes/") else name


def find_shipped(name: str) -> Path | None:
    """The file that comes with rlvr under a name, of which folder ``recipes/`` and ending ``.yaml`` may be left out."""
    files = shipped_files()
    for candidate in (name, f"{name}.yaml", f"recipes/{name}", f"recipes/{name}.yaml"):
        if candidate in files:
            return files[candidate]
    return None
