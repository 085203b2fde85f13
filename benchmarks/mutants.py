"""Mutation testing: puts one fault at a time into a module, and says which faults no test near it notices.

    PYTHONPATH=. python benchmarks/mutants.py [--workers 2] [--sample 60] [--known] [MODULE ...]

Faults are made from the syntax tree: comparisons moved by one or turned around, signs and operators changed, constants
off by one, conditions negated, results replaced by None, statements and keyword arguments left out. The tests of
`TESTS` that reach a fault's line (found by running all once under a trace) run until one fails; where none does, all
tests of the module run, since some reach it in processes of their own.

With ``--known`` only the faults of tests/data/mutants.jsonl are tried: each was missed once, none may be missed again.
tests/data/mutants_equivalent.jsonl holds the faults that change nothing anybody could see, each with the reason; they
are left out.

Each fault is written into a copy of the tree, for processes that tests start, and its function gets the new code in a
fork of a process that has collected the tests: a trial costs what the tests cost, no imports. mutmut (3.8) works the
same way and was tried; half of its survivors here were texts of error messages, and it leaves out what stands outside
functions and what runs in other processes. Faults outside functions are tried in a process that loads the module anew.

Prints each surviving fault and then each module as a JSON line; the exit status is 1 if the share of killed
faults is below ``--goal``.
"""

from __future__ import annotations

import argparse
import ast
import gc
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "tests/data/mutants.jsonl"
EQUIVALENT = ROOT / "tests/data/mutants_equivalent.jsonl"

_LOSSES = ("tests/learn/losses", "tests/learn/test_objective.py")
_UPDATE = (
    "tests/learn/test_update.py",
    "tests/learn/test_update_samples.py",
    "tests/learn/test_update_objectives.py",
)
TESTS: dict[str, tuple[str, ...]] = {
    "rlvr/learn/advantages.py": ("tests/learn/test_advantages.py", "tests/learn/test_baselines.py"),
    "rlvr/learn/losses/correction.py": _LOSSES,
    "rlvr/learn/losses/kl.py": _LOSSES,
    "rlvr/learn/losses/ratio.py": _LOSSES,
    "rlvr/learn/losses/statistics.py": _LOSSES,
    "rlvr/learn/losses/surrogates.py": _LOSSES,
    "rlvr/learn/losses/tokens.py": _LOSSES,
    "rlvr/learn/packing.py": ("tests/learn/test_packing.py",),
    "rlvr/learn/random_states.py": ("tests/state/test_state_complete.py", "tests/learn/test_update.py"),
    "rlvr/learn/samples.py": ("tests/learn/test_samples.py", "tests/learn/test_baselines.py"),
    **dict.fromkeys(("rlvr/learn/update.py", "rlvr/learn/plan.py", "rlvr/learn/optimiser_step.py"), _UPDATE),
    "rlvr/learn/meter.py": ("tests/learn/test_meter.py", "tests/learn/test_update.py"),
    "rlvr/learn/objective.py": (*_LOSSES, "tests/learn/test_distill.py", "tests/learn/test_update.py"),
    "rlvr/rollout/buffer.py": ("tests/rollout/test_buffer.py",),
    "rlvr/rollout/evaluate.py": ("tests/rollout/test_evaluate.py",),
    "rlvr/rollout/journal.py": ("tests/rollout/test_journal.py", "tests/rollout/test_buffer.py"),
    "rlvr/rollout/group_filter.py": ("tests/learn/test_baselines.py", "tests/learn/test_samples.py"),
    "rlvr/runlog/jsonl.py": ("tests/runlog/test_run_log.py",),
    "rlvr/runlog/metrics.py": ("tests/runlog/test_metrics.py",),
    "rlvr/state/checkpoint.py": ("tests/state",),
    "rlvr/state/register.py": ("tests/state/test_register.py",),
    "rlvr/state/resume.py": ("tests/state/test_find_checkpoint.py", "tests/state/test_resume.py"),
    "rlvr/state/saver.py": ("tests/state/test_saver.py", "tests/state/test_checkpoint.py"),
    "rewards/extract.py": ("tests/rewards/test_extract.py",),
    "rewards/math_answers.py": ("tests/rewards/test_math_cache.py", "tests/rewards/test_math_answers.py"),
    **dict.fromkeys(
        ("rewards/pool.py", "rewards/spares.py"),
        ("tests/rewards/test_pool_queue.py", "tests/rewards/test_pool.py", "tests/rewards/test_pool_faults.py"),
    ),
    "rewards/programs.py": ("tests/rewards/test_programs_verdicts.py", "tests/rewards/test_programs.py"),
}
"""For each module the tests that are to notice its faults."""

NOT_IN_A_FUNCTION = 3
"""The status of a trial that cannot be made in a process that has loaded the module."""

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.RShift: ast.LShift,
}  # fmt: skip
_UNSEEN = {"device", "strict"}
"""Keyword arguments that say what holds anyway: tests run on one device, and lengths that differ are a mistake."""
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: the text from `start` to `end` (bytes of the file) becomes `new`."""

    file: str
    line: int
    old: str
    new: str
    start: int
    end: int

    @property
    def place(self) -> dict[str, Any]:
        """What tells it from other faults wherever its line moves to: a row of `EQUIVALENT`."""
        text = (ROOT / self.file).read_bytes()
        start = text.rfind(b"\n", 0, self.start) + 1
        line = text[start : text.find(b"\n", self.start)].decode()
        return {
            "file": self.file, "line": line.strip(), "column": self.start - start, "old": self.old, "new": self.new,
        }  # fmt: skip

    def source(self) -> str:
        """The whole file with the fault in it."""
        text = (ROOT / self.file).read_bytes()
        return (text[: self.start] + self.new.encode() + text[self.end :]).decode()


# ------------------------------------------------------------------------------------------------------------ faults


def mutants_of(file: str) -> list[Mutant]:
    """Every fault that the operators make of a module, in the order of its lines."""
    text = (ROOT / file).read_bytes()
    starts = [0]
    for line in text.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    found: dict[tuple[int, int, str], Mutant] = {}
    for node, new in _faults(ast.parse(text), spoken=False):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = text[start:end].decode()
        mutant = Mutant(file, node.lineno, old, new, start, end)
        if new != old:
            found.setdefault((start, end, new), mutant)
    return sorted(found.values(), key=lambda mutant: mutant.start)


def _faults(node: ast.AST, spoken: bool) -> Iterator[tuple[ast.AST, str]]:
    """(node, text to put in its place) for a node and all below it; `spoken`: inside what a message says."""
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if not spoken:
        yield from _faults_here(node)
    if isinstance(node, ast.keyword) and node.arg in _UNSEEN:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases") or (
            isinstance(node, ast.arguments) and name in ("args", "kwonlyargs")
        ):
            continue
        inside = spoken or isinstance(node, ast.Raise)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _faults(child, inside)


def _faults_here(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    match node:
        case ast.Compare(left, [op, *ops], comparators) if type(op) in _COMPARISONS:
            yield node, f"({ast.unparse(ast.Compare(left, [_COMPARISONS[type(op)](), *ops], comparators))})"
            if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                turned = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}[type(op)]
                yield node, f"({ast.unparse(ast.Compare(left, [turned(), *ops], comparators))})"
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            if not isinstance(left, ast.JoinedStr) and not isinstance(right, ast.JoinedStr):
                yield node, f"({ast.unparse(ast.BinOp(left, _OPERATORS[type(op)](), right))})"
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.BoolOp(op, values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield node, f"({ast.unparse(ast.BoolOp(other, values))})"
        case ast.Constant(bool() as value):
            yield node, str(not value)
        case ast.Constant(int() | float() as value):
            yield node, repr(value + 1)
            if value == 1 or (isinstance(value, float) and value):
                yield node, repr(value - 1 if value == 1 else value * 2)
        case ast.IfExp(test, body, other):
            yield node, f"({ast.unparse(ast.IfExp(test, other, body))})"
        case ast.If(test) | ast.While(test):
            yield test, f"(not ({ast.unparse(test)}))"
        case ast.comprehension(ifs=[condition, *_]):
            yield condition, "True"
        case ast.Return(value) if value is not None and not isinstance(value, ast.Constant):
            yield node, "return None"
        case ast.Expr(ast.Call(ast.Name("assert_never"))):
            pass
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.Break():
            yield node, "continue"
        case ast.Continue():
            yield node, "break"
        case ast.Name(name) if name in _NAMES:
            yield node, _NAMES[name]
        case ast.Attribute(value, name) if name in _NAMES:
            yield node, f"{ast.unparse(value)}.{_NAMES[name]}"
        case ast.Call(function, arguments, keywords):
            for place, keyword in enumerate(keywords):
                if keyword.arg is not None and keyword.arg not in _UNSEEN:
                    rest = [*keywords[:place], *keywords[place + 1 :]]
                    yield node, ast.unparse(ast.Call(function, arguments, rest))


def read_mutants(path: Path) -> list[Mutant]:
    """The faults of a file of {"file", "old", "new"}; `old` must stand in the module exactly once."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = (ROOT / row["file"]).read_text(encoding="utf-8")
        if text.count(row["old"]) != 1:
            raise ValueError(f"{path.name}: {row['old']!r} stands {text.count(row['old'])} times in {row['file']}")
        place = text.index(row["old"])
        start = len(text[:place].encode())
        end = start + len(row["old"].encode())
        found.append(Mutant(row["file"], text[:place].count("\n") + 1, row["old"], row["new"], start, end))
    return found


def read_equivalent(path: Path) -> set[str]:
    """The places of faults that change nothing, as JSON; each line must still stand in its file."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        del row["reason"]
        if row["line"] not in (ROOT / row["file"]).read_text(encoding="utf-8"):
            raise ValueError(f"{path.name}: {row['line']!r} stands no longer in {row['file']}")
        found.add(json.dumps(row, sort_keys=True))
    return found


# ------------------------------------------------------------------------------------------------------------ trials


class Copy:
    """A copy of the tree, and a process that has collected a module's tests there and is forked for each trial."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="rlvr-mutants-"))
        self.tree = self.path / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", "runs", "models", "site", "__pycache__", ".*_cache", "shared"
        )
        shutil.copytree(ROOT, self.tree, symlinks=True, ignore=ignored)
        self._module = ""
        self._server: subprocess.Popen[str] | None = None
        self._changes = 0

    def run(self, module: str, **request: object) -> dict[str, Any]:
        """Ask for a trial, as `Server` says."""
        if self._module != module:
            self._end()
            environment = os.environ | {
                "PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TMPDIR": str(self.path),
            }  # fmt: skip
            self._server = subprocess.Popen(
                [sys.executable, __file__, "--serve", module], cwd=self.tree, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._module = module
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the tests of {module} cannot be collected: {' '.join(TESTS[module])}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def try_out(self, mutant: Mutant, tests: Sequence[str], timeout: float) -> bool:
        """Whether some test notices the fault."""
        target = self.tree / mutant.file
        before = target.stat()
        self._changes += 1
        original = target.read_bytes()
        target.write_text(mutant.source(), encoding="utf-8")
        os.utime(target, (before.st_atime, before.st_mtime + self._changes))  # no compiled file may pass for this one
        try:
            status = self.run(mutant.file, tests=list(tests), timeout=timeout, line=mutant.line)["status"]
            if status == NOT_IN_A_FUNCTION:
                self._end()
                try:
                    status = self.run(mutant.file, timeout=timeout)["status"]
                except RuntimeError:  # a module that cannot be loaded is noticed
                    status = 1
                finally:
                    self._end()
            return bool(status != 0)
        finally:
            target.write_bytes(original)
            os.utime(target, (before.st_atime, before.st_mtime))

    def close(self) -> None:
        """End the process and remove the copy."""
        self._end()
        shutil.rmtree(self.path, ignore_errors=True)

    def _end(self) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
        self._module, self._server = "", None


class Server:
    """A pytest plug-in in place of the loop that runs the tests: each request runs some of them in a fork of its own.

    A request is {"tests": [id, ...] (all without), "timeout": seconds, "line": n} where line n of the module, as it
    lies on the disk now, has the fault, or {"timeout": seconds, "trace": true}. The answer has the status (0 where all
    passed, -1 where the time was up), the seconds, and with a trace the lines of the module that each test ran.
    """

    def __init__(self, module: str, answers: int) -> None:
        self._module, self._answers = os.path.join(os.getcwd(), module), answers
        self._failed = False
        self._lines: dict[str, set[int]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:  # some could not be collected
            return True
        for line in sys.stdin:
            request = json.loads(line)
            began = time.monotonic()
            report = Path("..", "report.json")
            report.unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                try:
                    os._exit(self._run(session, request, report))
                finally:
                    os._exit(2)
            answer = {"status": _wait(child, request["timeout"]), "seconds": time.monotonic() - began}
            if report.exists():
                answer["lines"] = json.loads(report.read_text())
            os.write(self._answers, json.dumps(answer).encode() + b"\n")
        return True

    def _run(self, session: pytest.Session, request: dict[str, Any], report: Path) -> int:
        wanted = set(request.get("tests") or ())
        items = [item for item in session.items if not wanted or item.nodeid in wanted]
        if "line" in request and not _put_in(self._module, request["line"]):
            return NOT_IN_A_FUNCTION
        for place, item in enumerate(items):
            if request.get("trace"):
                sys.settrace(self._traces(item.nodeid))
                threading.settrace(self._traces(item.nodeid))
            following = items[place + 1] if place + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.settrace(None)
            if self._failed:
                return 1
        if request.get("trace"):
            report.write_text(json.dumps({test: sorted(lines) for test, lines in self._lines.items()}))
        return 0

    def _traces(self, test: str) -> Callable[..., Any]:
        lines = self._lines[test]

        def trace(frame: FrameType, event: str, value: object) -> Any:
            if frame.f_code.co_filename != self._module:
                return None
            lines.add(frame.f_lineno)
            return trace

        return trace


def _put_in(module: str, line: int) -> bool:
    """Give the functions of a loaded module the code that its file has now around a line; False for code that runs
    when the module is loaded."""
    found = [one for one in _functions(compile(Path(module).read_text(), module, "exec")) if line in _lines_of(one)]
    changed = 0
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == module:
            for code in found:
                if code.co_qualname == function.__code__.co_qualname and code.co_firstlineno == (
                    function.__code__.co_firstlineno
                ):
                    function.__code__ = code
                    changed += 1
    return bool(changed)


def _functions(code: CodeType) -> Iterator[CodeType]:
    """The outermost functions in compiled code, through the bodies of classes."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & inspect.CO_NEWLOCALS:
                yield inner
            else:
                yield from _functions(inner)


def _lines_of(code: CodeType) -> set[int]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    own = {line for *_, line in code.co_lines() if line is not None}
    return set(range(min(own), max(own) + 1)).union(*map(_lines_of, inner))


def serve(module: str) -> None:
    """The process that is forked."""
    answers = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    sys.path[0] = os.getcwd()
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--capture=no"]
    pytest.main([*options, *TESTS[module]], plugins=[Server(module, answers)])


def _wait(child: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


# -------------------------------------------------------------------------------------------------------------- main


@dataclass(slots=True)
class Result:
    """What became of a module's faults."""

    module: str
    mutants: int
    killed: int
    equivalent: int
    seconds: float

    @property
    def share(self) -> float:
        """Killed faults over those that change something."""
        return self.killed / self.mutants if self.mutants else 1.0


def examine(module: str, mutants: Sequence[Mutant], copies: Queue[Copy], workers: int) -> list[Mutant]:
    """The faults of a module that no test notices."""
    copy = copies.get()
    try:
        base = copy.run(module, timeout=900, trace=True)
        again = copy.run(module, timeout=900)
    finally:
        copies.put(copy)
    if base["status"] != 0 or again["status"] != 0:
        raise RuntimeError(f"the tests of {module} fail without a fault: {' '.join(TESTS[module])}")
    limit = 20 + 5 * float(again["seconds"])
    reached: dict[str, list[int]] = base["lines"]
    tree = ast.parse((ROOT / module).read_text())
    statements = _statements(tree)

    def survives(mutant: Mutant) -> bool:
        lines = statements.get(mutant.line, {mutant.line})
        near = [test for test, ran in reached.items() if lines & set(ran)]
        copy = copies.get()
        try:
            if near and copy.try_out(mutant, near, limit):
                return False
            if survived := not copy.try_out(mutant, (), limit):
                print(json.dumps(mutant.place, ensure_ascii=False), flush=True)
            return survived
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(workers) as threads:
        fates = list(threads.map(survives, mutants))
    return [mutant for mutant, survived in zip(mutants, fates, strict=True) if survived]


def _statements(tree: ast.AST) -> dict[int, set[int]]:
    """For each line the lines of the innermost statement it belongs to: a trace names only some of them."""
    found: dict[int, set[int]] = {}
    for node in ast.walk(tree):  # outer statements come first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno
            lines = set(range(node.lineno, max(node.lineno, last or node.lineno) + 1))
            found |= dict.fromkeys(lines, lines)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help=f"paths, or parts of them; all of {len(TESTS)} without")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sample", type=int, default=None, help="at most so many faults a module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", type=float, default=0.95)
    parser.add_argument("--known", action="store_true", help="only the faults of tests/data/mutants.jsonl")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    equivalent = read_equivalent(EQUIVALENT)
    known = read_mutants(KNOWN) if arguments.known else []
    modules = [name for name in TESTS if not arguments.modules or any(part in name for part in arguments.modules)]
    copies: Queue[Copy] = Queue()
    for _ in range(arguments.workers):
        copies.put(Copy())
    results = []
    try:
        for module in modules:
            began = time.monotonic()
            every = [one for one in known if one.file == module] if arguments.known else mutants_of(module)
            mutants = [one for one in every if json.dumps(one.place, sort_keys=True) not in equivalent]
            left_out = len(every) - len(mutants)
            if arguments.sample is not None and len(mutants) > arguments.sample:
                mutants = random.Random(arguments.seed).sample(mutants, arguments.sample)
            if not mutants:
                continue
            survivors = examine(module, mutants, copies, arguments.workers)
            result = Result(module, len(mutants), len(mutants) - len(survivors), left_out, time.monotonic() - began)
            results.append(result)
            print(json.dumps(asdict(result) | {"share": round(result.share, 4)}), flush=True)
    finally:
        while not copies.empty():
            copies.get().close()
    killed, total = sum(one.killed for one in results), sum(one.mutants for one in results)
    print(json.dumps({"mutants": total, "killed": killed, "share": round(killed / max(1, total), 4)}))
    return 0 if killed >= arguments.goal * total else 1


if __name__ == "__main__":
    sys.exit(main())
