"""References of MATH-500, AMC 23 and AIME 24, rewritten by text and by sympy: equal spellings and near misses.

Run `python benchmarks/grading_fuzz.py`: prints how many equal spellings were refused and near misses accepted, and
which. Spellings by text are judged as in training (`form: evaluated`); those by sympy for equality alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import sympy  # noqa: E402

from rewards.math_answers import MathVerifier  # noqa: E402
from rewards.mathematics.nodes import Unreadable  # noqa: E402
from rewards.mathematics.reader import read  # noqa: E402
from rewards.mathematics.second import expression_of  # noqa: E402

DATA = REPOSITORY / "tests" / "data"
NAMES = ("math500", "amc23", "aime24")


def references() -> list[str]:
    """Each different reference of the three sets."""
    found = []
    for name in NAMES:
        found += [json.loads(line)["answer"] for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return list(dict.fromkeys(found))


def spellings(reference: str) -> Iterator[tuple[str, str]]:
    """Rule and text of other ways to write the same, as people and models do."""
    yield "dollars", f"${reference}$"
    yield "display", f"\\[{reference}\\]"
    yield "braces", f"{{{reference}}}"
    yield "box", f"\\boxed{{{reference}}}"
    yield "full stop", f"{reference}."
    yield "blanks", reference.replace("+", " + ").replace("=", " = ").replace(",", ", ")
    yield "style", f"\\displaystyle {reference}"
    for rule, old, new in (
        ("dfrac", "\\frac", "\\dfrac"), ("tfrac", "\\frac", "\\tfrac"), ("left", "(", "\\left("),
        ("cdot", "\\cdot", "\\times"),
        ("degree", "^\\circ", "°"), ("pi", "\\pi", "π"), ("infinity", "\\infty", "∞"), ("minus", "-", "−"),
    ):  # fmt: skip
        if old in reference:
            text = reference.replace(old, new)
            yield rule, text.replace(")", "\\right)") if rule == "left" else text
    if reference.lstrip("-").isdigit():
        yield "decimal", f"{reference}.0"
        yield "thousands", f"{int(reference):,}"
        yield "text", f"\\text{{{reference}}}"
        yield "bold", f"\\mathbf{{{reference}}}"
        yield "label", f"x = {reference}"


def misses(reference: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Rule and text of what is nearly the same: a digit changed, a sign, a power of ten."""
    digits = [at for at, char in enumerate(reference) if char.isdigit()]
    if not digits:
        return
    at = rng.choice(digits)
    other = str((int(reference[at]) + rng.randint(1, 8)) % 9 + 1)
    if other != reference[at]:
        yield "digit", reference[:at] + other + reference[at + 1 :]
    if reference.lstrip("-").isdigit() and int(reference):
        yield "sign", str(-int(reference))
        yield "tenfold", f"{reference}0"
        yield "more", f"{int(reference) + 1}"
        yield "tail", f"{reference}.001"


def by_sympy(reference: str) -> Iterator[tuple[str, str, bool]]:
    """Rule, text and whether it is equal, for references that are one value."""
    try:
        node = read(reference).node
        value = expression_of(node) if node is not None else None
    except (Unreadable, TypeError, ValueError):
        return
    if value is None or value.is_number is not True or value.is_finite is not True:
        return
    yield "sympy", sympy.latex(value), True
    yield "plain", str(value).replace("**", "^").replace("I", "i"), True
    yield "sum", sympy.latex(value - 1) + " + 1", True
    yield "next", sympy.latex(value + 1), False
    if "." not in reference:  # a decimal stands for what rounds to it
        yield "tiny", sympy.latex(value + sympy.Rational(1, 10**40)), False
    yield "double", sympy.latex(2 * value + 1) if value != -1 else "7", False


def main() -> int:
    """Print the counts and the pairs that were judged wrongly; 1 for a near miss that was accepted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=40, help="pairs printed")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    trained, equal = MathVerifier(), MathVerifier(form="any")
    counts: Counter[str] = Counter()
    wrong: list[tuple[str, str, str, str]] = []
    for reference in references():
        pairs = [(rule, text, True, trained) for rule, text in spellings(reference)]
        pairs += [(rule, text, False, trained) for rule, text in misses(reference, rng)]
        pairs += [(rule, text, same, equal) for rule, text, same in by_sympy(reference)]
        for rule, text, same, verifier in pairs:
            kind = "equal" if same else "near"
            counts[kind] += 1
            if (verifier.grade_answer(text, reference).score == 1.0) is not same:
                counts[f"{kind} wrong"] += 1
                wrong.append((kind, rule, reference, text))
    for kind, rule, reference, text in wrong[: options.show]:
        print(f"{kind:6} {rule:10} {reference!r:.50} <- {text!r:.70}")
    for kind, verb in (("equal", "refused"), ("near", "accepted")):
        share = counts[f"{kind} wrong"] / max(1, counts[kind])
        print(f"{kind}: {counts[f'{kind} wrong']} of {counts[kind]} {verb} ({share:.2%})")
    return 1 if counts["near wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
