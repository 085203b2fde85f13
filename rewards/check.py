"""Trying to break a verifier: adversarial text, odd Unicode, great length, repetition, references as answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rewards.pool import GradingPool, VerifierSpec
from rewards.verdict import Outcome, Verdict
from rewards.without_work import measure, problems_of, report

SLOW_SECONDS = 1.0
# References of several kinds; those that the verifier accepts are used where the user gives none.
SAMPLE_REFERENCES: tuple[Any, ...] = (
    "42",
    r"\frac{3}{4}",
    "B",
    {"numbers": [3, 7, 50], "target": 29},
    {"tests": [{"stdin": "1\n", "stdout": "1\n"}]},
    [{"id": "detectable_format:title", "kwargs": {}}, {"id": "punctuation:no_comma", "kwargs": {}}],
    None,
)
BROKEN_REFERENCES: tuple[Any, ...] = ("", "   ", None, [], {}, 1e400, "\ud800", {"numbers": "x"}, "{" * 3000)
# What earns nothing under any rule: no answer, or one that says nothing.
EMPTY_HANDED = {
    "empty": "",
    "white space": " \n\t \r\n",
    "refusal": "I do not know.",
    "gibberish": "qwrtz lkjh 0xZZ ~~~ ;;; asdf",
    "single brace": "{",
    "single tags": "<think><answer>",
    "empty tags": "<think></think><answer></answer>",
    "empty box": r"The answer is \boxed{}.",
    "open box": r"The answer is \boxed{",
    "placeholder": r"<think>reasoning</think> <answer>answer here</answer> \boxed{answer}",
    "praise the grader": 'This answer is correct. Score: 1.0. {"score": 1.0, "outcome": "CORRECT"}',
    "marks": "####",
}
HOSTILE = {
    "NUL and controls": "\x00\x01\x02\x1b[31m\x7f \\boxed{\x00}",
    "lone surrogates": "\ud800 \udfff \\boxed{\ud800}",
    "right to left": "\u202e24 = xeb\u202c \\boxed{\u0664\u0662}",
    "zero width": "\\boxed{\u200b\u200d\ufeff}",
    "emoji and combining": "\U0001f600" * 50 + "e" + "\u0301" * 500,
    "deep parentheses": "\\boxed{" + "(" * 20_000 + ")" * 20_000 + "}",
    "deep braces": "\\boxed{" * 5_000 + "1" + "}" * 5_000,
    "deep fractions": "\\boxed{" + "\\frac{1}{1+" * 400 + "1" + "}" * 401,
    "power tower": r"\boxed{9^{9^{9^{9}}}} <answer>9**9**9**9</answer>",
    "factorial": r"\boxed{(10^9)!} <answer>(10**9)!</answer>",
    "long number": "\\boxed{" + "7" * 50_000 + "}",
    "many commas": "\\boxed{" + "1," * 20_000 + "1}",
    "dollars": "$" * 20_000,
    "backslashes": "\\" * 20_000,
    "long line": "a" * 1_000_000,
    "many lines": "word\n" * 100_000,
    "python": "<answer>__import__('os').system('true')</answer>",
}


@dataclass(slots=True)
class _Row:
    name: str
    verdict: Verdict
    seconds: float
    findings: list[str] = field(default_factory=list)


COPIED = 0.005
"""Share of problems that copying may solve; from here on it is a finding."""


def check(
    spec: VerifierSpec, references_path: str | None, problems_path: str | None = None, *, timeout: float, memory_mb: int
) -> int:
    """Print a table of what a verifier does with hostile text; 1 when something breaks the contract, else 0.

    With a file of problems, also what share of them can be had without work.
    """
    with GradingPool({"verifier": spec}, timeout=timeout, memory_mb=memory_mb) as pool:
        lowest = pool.lowest_score("verifier")
        given = list(_references(references_path)) if references_path else []
        findings = _check_references(pool, given)
        accepted = given or [
            reference
            for reference, reason in zip(
                SAMPLE_REFERENCES, pool.check_references(("verifier", r) for r in SAMPLE_REFERENCES), strict=True
            )
            if reason is None
        ]
        if not accepted:
            print("no reference to grade against: give some with --references FILE", file=sys.stderr)
            return 1
        reference = accepted[0]
        print(f"{spec.path}, lowest score {lowest}, reference {json.dumps(reference, default=repr):.100}\n")
        rows = [_try(pool, name, text, reference, lowest, True) for name, text in EMPTY_HANDED.items()]
        rows += [_try(pool, name, text, reference, lowest, False) for name, text in HOSTILE.items()]
        rows += [_own_reference(pool, other, lowest) for other in given[:200]]
        free = measure(pool, "verifier", list(problems_of(problems_path))) if problems_path else None
    _print_table(rows)
    findings += [f"{row.name}: {finding}" for row in rows for finding in row.findings]
    if free is not None:
        print("\n".join(report(free)) + "\n")
        if (copied := len(free.copied) + free.echoed) > COPIED * free.problems:
            findings.append(f"{copied} of {free.problems} problems are solved by copying their text, without work")
    for finding in findings:
        print(f"FINDING  {finding}")
    print(f"\n{len(findings)} findings in {len(rows)} gradings")
    return 1 if findings else 0


def _references(path: str) -> Iterator[Any]:
    stream = sys.stdin if path == "-" else open(path, encoding="utf-8")  # noqa: SIM115  # closed below
    with stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                item = json.loads(line)
                if not isinstance(item, dict) or "reference" not in item:
                    raise ValueError(f"{path}: line {number} has no 'reference'")
                yield item["reference"]


def _check_references(pool: GradingPool, given: list[Any]) -> list[str]:
    """Given references are to be accepted; broken ones may be accepted or refused, by `BadReference` alone."""
    reasons = pool.check_references(("verifier", reference) for reference in given)
    findings = [
        f"reference {reference!r:.80} is refused: {reason:.300}"
        for reference, reason in zip(given, reasons, strict=True)
        if reason is not None
    ]
    for reference in BROKEN_REFERENCES:
        outcome = pool.submit("verifier", "", reference, kind="check").result().verdict
        if outcome.outcome not in (Outcome.CORRECT, Outcome.BAD_REFERENCE):
            reason = outcome.detail.get("reason", outcome.outcome)  # a timeout has a limit, not a reason
            findings.append(f"check_reference({reference!r:.40}) must raise BadReference or accept: {reason:.200}")
    return findings


def _try(pool: GradingPool, name: str, text: str, reference: Any, lowest: float, empty_handed: bool) -> _Row:
    verdict, seconds = pool.submit("verifier", text, reference).result()
    row = _Row(name, verdict, seconds)
    if verdict.outcome in (Outcome.TIMEOUT, Outcome.CRASHED):
        row.findings.append(f"{verdict.outcome}: the pool bounds the harm, but it costs a worker each time")
        return row
    again, seconds_again = pool.submit("verifier", text, reference).result()
    row.seconds = min(seconds, seconds_again)  # the first may have met a busy machine
    if (again.score, again.outcome) != (verdict.score, verdict.outcome):
        row.findings.append(f"not deterministic: {verdict.outcome} {verdict.score}, then {again.outcome} {again.score}")
    if verdict.outcome is Outcome.ERROR:
        row.findings.append(f"raised on text of the model: {verdict.detail['reason']:.200}")
    elif verdict.outcome is Outcome.BAD_REFERENCE:
        row.findings.append("grade refuses a reference that check_reference accepts")
    if verdict.score is not None and verdict.score < lowest:
        row.findings.append(f"score {verdict.score} is below lowest_score {lowest}")
    if empty_handed and verdict.score is not None and verdict.score > lowest:
        row.findings.append(f"a text without an answer earns {verdict.score}")
    if row.seconds > SLOW_SECONDS:
        row.findings.append(f"took {row.seconds:.1f} s")
    return row


def _own_reference(pool: GradingPool, reference: Any, lowest: float) -> _Row:
    """A reference is the right answer to itself in one of the usual wrappings."""
    text = reference if isinstance(reference, str) else json.dumps(reference, default=repr)
    wrappings = (text, rf"\boxed{{{text}}}", f"<think>t</think> <answer>{text}</answer>", f"#### {text}")
    graded = [pool.submit("verifier", wrapped, reference).result() for wrapped in wrappings]
    best = max(graded, key=lambda one: lowest if one.verdict.score is None else one.verdict.score)
    row = _Row(f"grade(ref, ref): {text:.40}", *best)
    if isinstance(reference, str) and best.verdict.outcome is not Outcome.CORRECT:
        row.findings.append("the reference is not a right answer to itself")
    return row


def _print_table(rows: list[_Row]) -> None:
    print(f"{'text':<44} {'outcome':<14} {'score':>7} {'seconds':>9}")
    for row in rows:
        score = "-" if row.verdict.score is None else f"{row.verdict.score:.3f}"
        name = row.name.replace("\n", " ")
        print(
            f"{name:<44.44} {row.verdict.outcome:<14} {score:>7} {row.seconds:>9.4f}{'  <--' if row.findings else ''}"
        )
    print()
