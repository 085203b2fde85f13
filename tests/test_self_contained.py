"""The repository needs nothing beside it: no tracked file leads out of it or names the machine it was written on."""

from __future__ import annotations

import ast
import functools
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UPWARDS = re.compile(r"""(?:^|(?<=[\s"'`(=:\[,]))\.\./[^\s"'`)\]]*""", re.MULTILINE)
"""A relative path that starts by climbing."""
SOMEBODYS = re.compile(r"(?<![\w.$}/-])/(?:home|Users|root|mnt|media|srv|workspace|work)/\w[\w./-]*")
"""An absolute path into a folder that only one machine has."""
TRACKER = re.compile(r"(?<!'s )\b(?:issue|ticket)s? #?\d+|(?<=[\s(])#\d+\b", re.IGNORECASE)
"""A number of our own tracker; another project's is written "TRL's issue 6789" or "cpython gh-96995"."""
KEPT = {"resolve", "absolute", "expanduser", "Path", "PurePath", "str", "abspath", "realpath", "fspath"}
"""Calls that leave a path where it is."""


class Outside(Exception):
    """A path expression climbs above the repository."""


def tracked() -> list[Path]:
    """All files that git tracks; in a folder without git, all that are not ignored by name."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return sorted(ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists())
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    found = (Path(folder) / name for folder, _, names in os.walk(ROOT) for name in names)
    return sorted(
        path for path in found
        if not any(part in ignored or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
    )  # fmt: skip


def join(place: str, more: str) -> str:
    """The place below the repository's root ("" is the root) after a relative path; raises `Outside`."""
    joined = posixpath.normpath(posixpath.join("/", place) + "/" + more).lstrip("/")
    climbs = posixpath.normpath(posixpath.join(place or ".", more.lstrip("/")))
    if climbs.split("/")[0] == "..":
        raise Outside(climbs)
    return joined


class Places(ast.NodeVisitor):
    """Follows the path expressions of a module that start at ``__file__``; `faults` holds those that lead outside.

    Understood are `Path` with ``/``, ``.parent``, ``.parents[n]``, `os.path` with ``dirname`` and ``join``, f-strings
    and ``+`` that begin with a known place, names assigned in the module, and names imported from a module of the
    repository.
    """

    def __init__(self, root: Path, file: Path) -> None:
        self._root = root
        self.known = {"__file__": file.relative_to(root).as_posix()}
        self.faults: list[str] = []
        self.visit(ast.parse(file.read_text(encoding="utf-8")))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = self._root / f"{(node.module or '').replace('.', '/')}.py"
        if node.level == 0 and source.is_file() and any(alias.name.isupper() for alias in node.names):
            there = Places(self._root, source).known
            self.known |= {alias.asname or alias.name: there[alias.name] for alias in node.names if alias.name in there}

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        match node.targets:
            case [ast.Name(id=name)]:
                place = self._place(node.value)
                self.known.pop(name, None)
                if place is not None:
                    self.known[name] = place

    def generic_visit(self, node: ast.AST) -> None:
        if (isinstance(node, ast.expr) and self._place(node, note=True) is None) or not isinstance(node, ast.expr):
            super().generic_visit(node)

    def _place(self, node: ast.expr, note: bool = False) -> str | None:
        """Where an expression leads, if that is known; with `note` a fault is noted, once."""
        try:
            return self._follow(node)
        except Outside:
            if note:
                self.faults.append(f"line {node.lineno}: {ast.unparse(node):.90} leads out of the repository")
            return "" if note else None

    def _follow(self, node: ast.expr) -> str | None:
        match node:
            case ast.Name(id=name):
                return self.known.get(name)
            case ast.Attribute(value=value, attr="parent"):
                return self._climb(value, 1)
            case ast.Subscript(value=ast.Attribute(value=value, attr="parents"), slice=ast.Constant(value=int(index))):
                return self._climb(value, index + 1)
            case ast.BinOp(left=left, op=ast.Div() | ast.Add(), right=right):
                return self._joined(self._follow(left), [right])
            case ast.JoinedStr(values=[ast.FormattedValue(value=value), *rest]):
                return self._joined(self._follow(value), rest)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=[]) if name in KEPT:
                return self._follow(value)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *rest]):
                if name in KEPT or name in ("join", "joinpath"):
                    return self._joined(self._follow(first), rest)
                return self._climb(first, 1) if name == "dirname" else None
        return None

    def _climb(self, node: ast.expr, steps: int) -> str | None:
        place = self._follow(node)
        return None if place is None else join(place, "/".join([".."] * steps))

    @staticmethod
    def _joined(place: str | None, parts: list[ast.expr]) -> str | None:
        for part in parts:
            if place is None or not isinstance(part, ast.Constant) or not isinstance(part.value, str):
                return None  # what is not written out is followed no further
            place = join(place, part.value)
        return place


@functools.cache
def machine() -> list[str]:
    """What belongs to this machine alone: the checkout's path, the user's folder, pip's own package index."""
    own = [str(ROOT), f"{Path.home()}/"]
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    own += re.findall(r"(?:https?|file)://[^\s'\"]+", told.stdout)
    public = ("pypi.org", "download.pytorch.org")
    return [text for text in own if not any(host in text for host in public) and len(text) > len("/root/")]


def faults(root: Path, file: Path, own: list[str]) -> Iterator[str]:
    """What in a file leads out of the repository or names what a stranger does not have; `own` is `machine()`."""
    if file.is_symlink() and not file.resolve().is_relative_to(root):
        yield f"is a link to {file.readlink()}"
        return
    if file.is_dir():
        return  # a link to a folder of the repository, whose files are looked at where they lie
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # a picture
    for found in UPWARDS.findall(text):
        # Markdown's links start at the page's folder, every other path where the reader's shell is: at the root
        start = file.parent.relative_to(root).as_posix() if file.suffix == ".md" else ""
        try:
            join(start, found)
        except Outside:
            yield f"{found} leads out of the repository"
    yield from (f"{found} is a folder of one machine" for found in SOMEBODYS.findall(text))
    if file.suffix not in (".css", ".jsonl"):  # colours, and the words of others
        yield from (f"{found} is a number of a tracker" for found in TRACKER.findall(text))
    yield from (f"names {name}, which is this machine's" for name in own if name in text)
    if file.suffix == ".py":
        yield from Places(root, file).faults


@pytest.mark.slow
def test_no_tracked_file_leads_out_of_the_repository() -> None:
    files, own = tracked(), machine()
    assert len(files) > 300
    found = [f"{file.relative_to(ROOT)}: {fault}" for file in files for fault in faults(ROOT, file, own)]
    assert found == [], "\n".join(found)


DOTS = "." + "."  # this file is read by its own test
OFFENDERS = {
    "tests/a/test_x.py": "from pathlib import Path\nDATA = Path(__file__).resolve().parents[3] / 'data'",
    "tests/test_b.py": "from pathlib import Path\nROOT = Path(__file__).parents[1]\nDATA = ROOT.parent / 'data'",
    "tests/test_c.py": "from tests.places import ROOT\nrows = open(ROOT.parent / 'data').read()",
    "tests/test_d.py": f"from tests.places import ROOT\nprint(f'{{ROOT}}/{DOTS}/data')",
    "tests/test_e.py": "import os\nD = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))",
    "tests/test_f.py": f"import os\nH = os.path.dirname(__file__)\nD = os.path.join(H, '{DOTS}', '{DOTS}', 'data')",
    "tests/test_g.py": "def f():\n    from pathlib import Path\n    return Path(__file__).parent.parent.parent",
    "tests/test_h.py": f"open('{DOTS}/data/rows.jsonl')",
    "recipes/a.yaml": f"problems: {{path: {DOTS}/data/rows.jsonl}}",
    "docs/a.md": f"see [the design]({DOTS}/{DOTS}/design.md)",
    "docs/b.md": "the rows are in /" + "home/ann/rows.jsonl",
    "docs/c.md": "as asked in issue" + " 18",
    "docs/d.md": "mended (#" + "18)",
    "docs/e.md": f"installed to {ROOT}",
    "Makefile": f"data:\n\tcp {DOTS}/data/rows.jsonl .",
}
HONEST = {
    "tests/a/test_x.py": "from pathlib import Path\nDATA = Path(__file__).resolve().parents[1] / 'data'",
    "tests/test_b.py": "from pathlib import Path\nROOT = Path(__file__).parents[1]\nDATA = ROOT / 'tests' / 'data'",
    "tests/test_c.py": f"from tests.places import ROOT\nrows = open(f'{{ROOT}}/tests/{DOTS}/data').read()",
    "tests/test_d.py": "def f(path):\n    return path.parent.parent.parent / 'x'",
    "tests/test_e.py": "for index in range(3):\n    print('rows 0 .. 3', 'and so on...', '/proc/self/fd')",
    "docs/a.md": f"see [the recipes]({DOTS}/recipes/README.md) and TRL's issue 6789; in C#7 and /models/Qwen",
}


def written(folder: Path, name: str, text: str) -> Path:
    (folder / "tests").mkdir()
    (folder / "tests/places.py").write_text("from pathlib import Path\n\nROOT = Path(__file__).parents[1]\n")
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    return file


@pytest.mark.parametrize("name", OFFENDERS)
def test_an_offender_is_found(name: str, tmp_path: Path) -> None:
    assert list(faults(tmp_path, written(tmp_path, name, OFFENDERS[name]), machine())) != []


@pytest.mark.parametrize("name", HONEST)
def test_what_stays_inside_is_not_reported(name: str, tmp_path: Path) -> None:
    assert list(faults(tmp_path, written(tmp_path, name, HONEST[name]), machine())) == []


def test_a_link_out_of_the_repository_is_found(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    link = tmp_path / "inside/data"
    link.symlink_to(tmp_path)
    assert list(faults(tmp_path / "inside", link, []))
    link.unlink()
    link.symlink_to(tmp_path / "inside/rows")
    (tmp_path / "inside/rows").write_text("")
    assert list(faults(tmp_path / "inside", link, [])) == []
