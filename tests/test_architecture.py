"""Who may import whom, and how large things get: the rooms of the two packages, from the ground up."""

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = {
    "rewards": (
        "verdict", "names", "mathematics", "around_box", "extract", "copies", "language", "format", "countdown", "gym",
        "math_answers", "sandbox", "checkers", "program_text", "program_tests", "sandbox_fusion", "programs",
        "instructions", "functions", "spec", "chat", "judge_guards", "judge", "hybrid", "adapters", "rubrics",
        "combine", "worker", "process", "job", "spares", "pool",
        "__init__", "without_work", "check", "__main__",
    ),
    "rlvr": (
        "errors", "hosts", "control", "shipped", "hub", "dtypes", "records", "config", "plugins", "state", "problems",
        "runlog", "engines", "rollout", "learn", "sync", "rules", "run", "merge", "doctor", "view", "commands", "api",
        "__init__", "__main__",
    ),
}  # fmt: skip
"""Modules and folders of each package; each imports only from those before it, and from itself."""

LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 60


def modules(package: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Room, path and syntax tree of every module of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        yield parts[0], path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(path: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Full names of everything imported anywhere in a module, inside functions too, with the line."""
    folder = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])
            origin = base if node.level else (node.module or "")
            yield origin, node.lineno
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def room_of(name: str, package: str) -> str | None:
    """The room that a name of the package belongs to; None for names of `__init__` and of others."""
    parts = name.split(".")
    if parts[0] != package or len(parts) < 2:
        return None
    return parts[1] if parts[1] in ROOMS[package] else None


@pytest.mark.parametrize("package", ROOMS)
def test_every_module_has_its_room(package: str) -> None:
    found = {room for room, _, _ in modules(package)}
    assert found <= set(ROOMS[package]), f"give a place in ROOMS to {sorted(found - set(ROOMS[package]))}"


@pytest.mark.parametrize("package", ROOMS)
def test_imports_point_downwards(package: str) -> None:
    order = {room: place for place, room in enumerate(ROOMS[package])}
    wrong = []
    for room, path, tree in modules(package):
        for name, line in imports(path, tree):
            target = room_of(name, package)
            if target is not None and room in order and order[target] > order[room]:
                wrong.append(f"{path}:{line} imports {name}: {target} stands above {room}")
    assert not wrong, "\n".join(wrong)


def test_the_page_shows_the_rooms_in_their_order() -> None:
    """The table of docs/architecture.md has every room of rlvr, in the order of ROOMS, and names files that exist."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1:-1] for line in page.split("## The rooms")[1].split("\n## ")[0].splitlines() if "| `" in line
    ]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert names == ["rewards", *(room for room in ROOMS["rlvr"] if not room.startswith("__"))]
    files = re.findall(r"`((?:rlvr|rewards|tests)/[\w/]+\.py)`", page)
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.slow
def test_within_a_room_no_module_imports_itself_by_a_detour() -> None:
    edges: dict[str, set[str]] = {}
    for package in ROOMS:
        trees = {path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): (path, tree)
                 for _, path, tree in modules(package)}  # fmt: skip
        for module, (path, tree) in trees.items():
            edges[module] = {name for name, _ in imports(path, tree) if name in trees and name != module}
            # the package's own __init__ re-exports; importing one of its names is importing the module behind it
            edges[module] -= {".".join(module.split(".")[:-1])}
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join([*trail, module])
        if module not in state:
            state[module] = 1
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            state[module] = 2

    for module in sorted(edges):
        visit(module, ())


@pytest.mark.slow
def test_graders_know_nothing_of_training() -> None:
    for _, path, tree in modules("rewards"):
        heavy = [
            name for name, _ in imports(path, tree) if name.split(".")[0] in ("rlvr", "torch", "transformers", "vllm")
        ]
        assert not heavy, f"{path} imports {heavy}"


def run_blocked(blocked: str, program: str) -> None:
    """Run a program in which importing any of some packages fails, directly or through others."""
    guard = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {tuple(blocked.split())}: raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", guard + program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_graders_work_without_torch() -> None:
    """Every module of rewards is imported, and one completion graded, where torch cannot be."""
    names = [
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for _, path, _ in modules("rewards")
        if not path.endswith("__main__.py")
    ]
    run_blocked(
        "torch transformers vllm accelerate rlvr",
        f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
        "from rewards.math_answers import MathVerifier\n"
        "verdict = MathVerifier().grade(r'so \\boxed{42}', '42')\n"
        "assert verdict.outcome == 'CORRECT', verdict\n",
    )


@pytest.mark.slow
def test_a_recipe_is_read_without_anything_heavy() -> None:
    run_blocked(
        "torch transformers vllm accelerate datasets rewards",
        "import rlvr.config\nfrom rlvr.__main__ import main\nassert main(['schema']) == 0\n",
    )


@pytest.mark.slow
def test_size_alarm() -> None:
    """Prints what a reader may not hold in the head; it is a smoke alarm, no target, and fails nothing."""
    for package in ROOMS:
        for _, path, tree in modules(package):
            lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            if lines > LINES_OF_A_FILE:
                warnings.warn(f"{path} has {lines} lines, more than {LINES_OF_A_FILE}", stacklevel=1)
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > LINES_OF_A_FUNCTION:
                        warnings.warn(f"{path}:{node.lineno} {node.name} has {length} lines", stacklevel=1)


def test_the_checks_notice_what_they_are_for() -> None:
    """The walkers above on made-up modules: relative, nested and aliased imports are all seen."""
    tree = ast.parse("from . import records\nfrom ..rewards import pool\ndef f():\n    import rlvr.run.loop as x\n")
    found = {name for name, _ in imports("rlvr/metrics.py", tree)}
    assert {"rlvr.records", "rlvr.run.loop"} <= found
    assert room_of("rlvr.learn.update.Learner", "rlvr") == "learn"
    assert room_of("rewards.pool", "rlvr") is None
    nested = ast.parse("from .update import Learner\nfrom ..engines.protocol import Engine\n")
    assert {name for name, _ in imports("rlvr/learn/backend.py", nested)} == {
        "rlvr.learn.update", "rlvr.learn.update.Learner", "rlvr.engines.protocol", "rlvr.engines.protocol.Engine",
    }  # fmt: skip
