"""The command line: `python -m rewards grade` judges a file, `python -m rewards check` tries to break a verifier."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TextIO

from rewards.check import check
from rewards.pool import Graded, GradingPool, VerifierSpec, VerifierSpecError, WorkerStartError

WINDOW = 2_000
"""Lines in flight: enough to keep the workers busy, few enough to stream."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 for bad lines or findings, 2 for a verifier that cannot be built."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        spec = VerifierSpec(options.verifier, _verifier_args(parser, rest))
        if options.command == "check":
            return check(
                spec, options.references, options.problems, timeout=options.timeout, memory_mb=options.memory_mb
            )
        with GradingPool(
            {"verifier": spec}, workers=options.workers, timeout=options.timeout, memory_mb=options.memory_mb
        ) as pool:
            return _grade(pool, sys.stdin, sys.stdout)
    except (VerifierSpecError, WorkerStartError, ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"python -m rewards {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rewards", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    grade = commands.add_parser(
        "grade",
        allow_abbrev=False,
        help="judge JSON lines from standard input",
        description="Each line in: an object with `completion` (or `answer`, a bare answer) and `reference`. Each line "
        "out, in order: score, outcome, detail, seconds. Options not listed here go to the verifier: --extract boxed.",
    )
    grade.add_argument("--verifier", required=True, metavar="module:Class")
    grade.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    examine = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="try to break a verifier",
        description="Gives a verifier adversarial text and prints what it does. Options not listed go to the verifier.",
    )
    examine.add_argument("verifier", metavar="module:Class")
    examine.add_argument("--references", metavar="FILE", help="JSON lines with `reference`, or `-`; own data find more")
    examine.add_argument(
        "--problems",
        metavar="FILE",
        help="JSON lines with a problem and its answer: what share can be had without work",
    )
    for command in (grade, examine):
        command.add_argument("--timeout", type=float, default=2.0, help="seconds for one item (default 2)")
        command.add_argument("--memory-mb", type=int, default=1024, help="memory of a worker (default 1024)")
    return parser


def _verifier_args(parser: argparse.ArgumentParser, rest: list[str]) -> dict[str, Any]:
    """``--use-all false --extract boxed`` as keyword arguments; values are JSON where they parse as such."""
    args: dict[str, Any] = {}
    at = 0
    while at < len(rest):
        key, equals, value = rest[at].partition("=")
        if not key.startswith("--") or len(key) < 3:
            parser.error(f"{rest[at]!r} stands where an option of the verifier should: --key value")
        if not equals:
            at += 1
            if at == len(rest):
                parser.error(f"{key} has no value; options of the verifier are --key value")
            value = rest[at]
        at += 1
        try:
            args[key[2:].replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            args[key[2:].replace("-", "_")] = value
    return args


def _grade(pool: GradingPool, lines: Iterable[str], out: TextIO) -> int:
    waiting: deque[Future[Graded] | dict[str, Any]] = deque()
    outcomes: Counter[str] = Counter()
    bad = 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            waiting.append(_begin(pool, line, number))
            bad += isinstance(waiting[-1], dict)
        while len(waiting) > WINDOW:
            _print(waiting.popleft(), out, outcomes)
    while waiting:
        _print(waiting.popleft(), out, outcomes)
    out.flush()
    counted = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    print(f"graded {sum(outcomes.values())}: {counted or 'nothing'}; lines refused: {bad}", file=sys.stderr)
    return 1 if bad else 0


def _begin(pool: GradingPool, line: str, number: int) -> Future[Graded] | dict[str, Any]:
    try:
        item = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return {"line": number, "error": f"line {number} is not JSON: {error}"}
    if not isinstance(item, dict):
        return {"line": number, "error": f"line {number} is a {type(item).__name__}, it must be an object"}
    if "completion" not in item and "answer" not in item:
        return {"line": number, "error": f"line {number} has no 'completion' and no 'answer'; keys: {', '.join(item)}"}
    if "reference" not in item:
        return {"line": number, "error": f"line {number} has no 'reference'; keys: {', '.join(item)}"}
    kind, key = ("grade", "completion") if "completion" in item else ("answer", "answer")
    if not isinstance(item[key], str):
        return {"line": number, "error": f"line {number}: {key!r} is a {type(item[key]).__name__}, it must be a string"}
    return pool.submit("verifier", item[key], item["reference"], kind=kind)


def _print(item: Future[Graded] | dict[str, Any], out: TextIO, outcomes: Counter[str]) -> None:
    if isinstance(item, dict):
        out.write(json.dumps(item) + "\n")
        return
    verdict, seconds = item.result()
    outcomes[verdict.outcome] += 1
    line = {
        "score": verdict.score,
        "outcome": verdict.outcome,
        "detail": dict(verdict.detail),
        "seconds": round(seconds, 6),
    }
    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
