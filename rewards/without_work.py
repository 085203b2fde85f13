"""What share of a data set can be had without any work: by copying from the problem, or by one answer to all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.copies import copies
from rewards.extract import extract
from rewards.mathematics.normalise import normalise
from rewards.pool import GradingPool
from rewards.verdict import Outcome

QUESTION_KEYS = ("problem", "question", "prompt")
ANSWER_KEYS = ("answer", "reference", "solution", "target", "ground_truth")
WRAPPINGS = ("{0}", "\\boxed{{{0}}}", "<think>t</think> <answer>{0}</answer>", "#### {0}")
FORMS = (
    ("integer", re.compile(r"-?\d[\d,]*")),
    ("decimal", re.compile(r"-?\d[\d,]*\.\d+|-?\.\d+")),
    ("fraction", re.compile(r"-?\s*(?:\\[dt]?frac\s*\{-?\d+\}\s*\{-?\d+\}|\d+\s*/\s*\d+)")),
    ("letter of a choice", re.compile(r"(?:\\text\w*\{)?\(?[A-J]\)?\}?")),
    ("list, point or interval", re.compile(r".*(?:,|\\cup|\\begin\{[pb]matrix).*", re.DOTALL)),
    ("equation or inequality", re.compile(r".*(?:=|<|>|\\[lg]eq?(?![a-z])).*", re.DOTALL)),
    ("expression", re.compile(r".*[\\+*/^_\d].*", re.DOTALL)),
)


@dataclass(slots=True)
class WithoutWork:
    """What was found over the problems of a data set."""

    problems: int = 0
    copied: list[tuple[str, str]] = field(default_factory=list)
    """Reference, and what of the problem's text is right for it without being it; one a problem."""
    itself: int = 0
    """Problems whose text holds the reference as it stands: a number among others, mostly."""
    echoed: int = 0
    """Problems for which their whole text is a right completion."""
    forms: Counter[str] = field(default_factory=Counter)
    """How the references are written."""
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def commonest(self) -> tuple[str, float]:
        """The reference that stands most often, and its share: what one answer to all problems would earn."""
        ((text, count),) = self.answers.most_common(1) or (("", 0),)
        return text, count / max(1, self.problems)


def problems_of(path: str) -> Iterator[tuple[str, Any]]:
    """Text and reference of each line of a file. Raises `ValueError`, naming the line, where one has none."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            question = next((row[key] for key in QUESTION_KEYS if isinstance(row.get(key), str)), None)
            reference = next((row[key] for key in ANSWER_KEYS if key in row), None)
            if question is None or reference is None:
                raise ValueError(
                    f"{path}: line {number} needs a problem ({', '.join(QUESTION_KEYS)}) and a reference "
                    f"({', '.join(ANSWER_KEYS)}); it has {', '.join(row)}"
                )
            yield question, reference


def measure(pool: GradingPool, name: str, problems: Sequence[tuple[str, Any]]) -> WithoutWork:
    """Grade every copy of every problem, in the wrapping in which the verifier takes the reference itself."""
    found = WithoutWork()
    for question, reference in problems:
        text = _said(reference)
        wrapping = _wrapping(pool, name, text, reference)
        found.problems += 1
        found.forms[form_of(text)] += 1
        found.answers[text] += 1
        tried = copies(question)
        same = [copy for copy in tried if is_itself(copy, text)]
        found.itself += bool(same)
        if wrapping is None:
            continue
        others = [copy for copy in tried if copy not in same]
        verdicts = pool.grade_many((name, wrapping.format(copy), reference) for copy in others)
        right = [copy for copy, verdict in zip(others, verdicts, strict=True) if verdict.outcome is Outcome.CORRECT]
        if right:
            found.copied.append((text, right[0]))
        (echo,) = pool.grade_many([(name, question, reference)])
        found.echoed += echo.outcome is Outcome.CORRECT
    return found


def form_of(reference: str) -> str:
    """How a reference is written: integer, decimal, fraction, ..., words."""
    plain = reference.strip().strip("$").strip()
    return next((name for name, pattern in FORMS if pattern.fullmatch(plain)), "words")


def is_itself(copy: str, reference: str) -> bool:
    """Whether a copy is the reference as it stands: behind a label, with other zeros or a sign, a choice spelt out."""
    plain = [_bare(text) for text in (copy, reference)]
    letter = normalise(reference)
    choice = re.fullmatch(r"\\text\{\(?([A-J])\)?\}|\(?([A-J])\)?", letter)
    spelt = choice is not None and re.match(
        rf"\W*(?:\\text\W*)?{choice[1] or choice[2]}\b", normalise(copy), re.IGNORECASE
    )
    return plain[0] == plain[1] or bool(spelt)


def _bare(text: str) -> str:
    bare = normalise(text.rpartition("=")[2]).lower().replace(",", "").removesuffix("%")
    return re.sub(r"\.0+$", "", bare)


def _said(reference: Any) -> str:
    text = str(reference)
    return extract(text, "hash").text or text if "####" in text else text


def _wrapping(pool: GradingPool, name: str, text: str, reference: Any) -> str | None:
    verdicts = pool.grade_many((name, wrapping.format(text), reference) for wrapping in WRAPPINGS)
    known = zip(WRAPPINGS, verdicts, strict=True)
    return next((wrapping for wrapping, verdict in known if verdict.outcome is Outcome.CORRECT), None)


def report(found: WithoutWork) -> list[str]:
    """The lines that `python -m rewards check --problems` prints."""
    total = max(1, found.problems)
    answer, share = found.commonest
    lines = [
        f"{found.problems} problems; without work can be had:",
        f"  {len(found.copied) / total:7.2%}  by copying a formula or number of the text that equals the reference",
        f"  {found.echoed / total:7.2%}  by repeating the whole text",
        f"  {share:7.2%}  by answering {answer!r:.40} to all",
        f"  {found.itself / total:7.2%}  of the texts hold the reference itself, among other numbers and formulas",
        "references: " + ", ".join(f"{name} {count / total:.1%}" for name, count in found.forms.most_common()),
    ]
    return lines + [f"  {reference!r:.60} from {copy!r:.80}" for reference, copy in found.copied[:10]]
