"""The form of an answer: equal is not enough, it must be worked out as far as the reference is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.copies import copies
from rewards.extract import extract
from rewards.math_answers import MathVerifier
from rewards.without_work import is_itself

DATA = Path(__file__).resolve().parents[1] / "data"
VERIFIER = MathVerifier()
EQUAL = MathVerifier(form="any")

# reference, answers that are worked out as far, answers that are equal but not worked out
FORMS: list[tuple[str, list[str], list[str]]] = [
    # numbers
    ("26000", ["26{,}000", "2.6\\times10^4"], ["513^2-487^2", "2600\\cdot10", "13000+13000", "52000/2"]),
    ("5", ["5.0", "x=2+3=5"], ["2+3", r"\frac{10}{2}", "101_2", r"\sqrt{25}", r"\log_2 32", "|-5|", r"\gcd(10,15)"]),
    ("120", ["120"], ["5!", r"\binom{10}{3}", "5\\cdot4\\cdot3\\cdot2"]),
    ("55", [], [r"\sum_{k=1}^{10} k", r"\frac{10\cdot11}{2}"]),
    ("0.15", [".15", "0.150", r"15\%"], [r"\frac{3}{20}", "3/20"]),
    (r"\frac{3}{20}", ["0.15", "3/20", r"\dfrac{3}{20}"], [r"\frac{6}{40}", r"\frac{1}{10}+\frac{1}{20}"]),
    ("6.67", [r"\frac{20}{3}", r"6\frac23"], []),
    ("5000000", [r"5\text{ million}"], []),
    ("3:5", ["3:5", r"\frac35"], ["6:10"]),
    ("-6", ["-6"], ["(6)(-1)", "(-2)(3)"]),
    # what the reference leaves standing, an answer may leave standing too; a number may be worked out further
    ("2^{10}", ["1024", "2^{10}"], []),
    (r"\binom{10}{3}", ["120", r"\frac{10!}{3!7!}"], []),
    (r"2^3\cdot3^2", [r"3^2\cdot2^3"], ["72"]),
    (r"\frac{1}{2}+\frac{1}{3}", [r"\frac56"], []),
    # roots and constants
    (r"11\sqrt2", [r"\sqrt2\cdot11"], [r"\sqrt{242}"]),
    (r"\frac{\sqrt3}{3}", [r"\frac{1}{\sqrt3}"], [r"\frac{3}{\sqrt{27}}", r"\sqrt{\frac13}"]),
    (r"\sqrt2+1", [r"1+\sqrt{2}"], [r"\frac{1}{\sqrt2-1}"]),
    (r"\sqrt6", [], [r"\sqrt2\sqrt3"]),
    (r"3+2\sqrt2", [], [r"(1+\sqrt2)^2"]),
    (r"1+\sqrt3", [], [r"\frac{2+2\sqrt3}{2}"]),
    (r"\frac{3\pi}{2}", [r"1.5\pi", r"\frac32\pi"], [r"\pi+\frac{\pi}{2}", r"\frac{6\pi}{4}"]),
    (r"-\frac{\pi}{6}", [], [r"\arcsin(-\frac12)"]),
    (r"\frac12", [], [r"\sin 30^\circ", r"\cos\frac{\pi}{3}"]),
    ("6+9i", ["9i+6"], ["(1+2i)6-3i"]),
    ("1+2i", [], [r"\frac{-3+4i}{1+2i}", "1+2i^5"]),
    # polynomials and quotients
    ("x^2+2x+1", ["1+2x+x^2"], ["(x+1)^2", "1+x(x+2)", "x^2+x+x+1"]),
    ("(x+1)(x-2)", ["(x-2)(x+1)"], ["x^2-x-2", "x(x-1)-2"]),
    ("(a+5)(b+2)", ["(b+2)(a+5)"], ["ab+5b+2a+10"]),
    ("2x+2", ["2+2x"], ["2(x+1)"]),
    ("15x-80", [], ["19x+1-4x-81"]),
    ("14", [], ["(u+4)(u-1)-(u-3)(u+6)"]),
    (r"\frac{n(n+1)}{2}", [r"\frac{n^2+n}{2}", r"\frac12n(n+1)"], []),
    (r"\frac{11+9a}{20}", [r"\frac{11}{20}+\frac{9a}{20}"], [r"\frac{4+6a}{5}-\frac{1+3a}{4}"]),
    ("x+2", [], [r"\frac{x^2-4}{x-2}"]),
    (r"\frac{b+6}{b+7}", [], [r"\frac{b^2+14b+48}{b^2+15b+56}", r"\frac{2b+12}{2b+14}"]),
    (r"\frac{x+y}{xy}", [], [r"\frac1x+\frac1y"]),
    (r"\frac1x-\frac1{x+1}", [], [r"\frac{1}{x(x+1)}"]),
    ("5r^5", [], [r"\frac{(10r^3)(4r^6)}{8r^4}", r"5r^2r^3"]),
    (r"\cot x", [r"\frac{\cos x}{\sin x}"], [r"\frac{\sec x}{\sin x}-\frac{\sin x}{\cos x}"]),
    ("1", [], [r"\sin^2x+\cos^2x"]),
    ("|x|", [], [r"\sqrt{x^2}"]),
    # equations and regions
    ("x=5", ["5", "x=5", "5=x"], ["3x+5=20", "2x=10"]),
    ("x>3", [r"(3,\infty)", "3<x"], ["2x+1>7", "x-3>0"]),
    ("x<2", [], ["5-2x>1"]),
    (r"x=\frac{21}{5}", [], [r"\frac{x-5}{2}=\frac{3-x}{3}"]),
    ("y=2x+1", ["2x+1", "y=1+2x"], ["2x-y+1=0"]),
    ("L=S-2B", ["S-2B"], ["S=L+2B"]),
    ("2x+4y-3=0", [r"y=-\frac{1}{2}x+\frac34", "-4x-8y+6=0"], []),
    ("xy=6", [r"\frac6x"], []),
    ("(-1,1)", ["-1<x<1"], ["|x|<1"]),
    # lists, points, matrices
    ("3,5", ["5, 3"], ["1+2, 5"]),
    (r"(3,\frac{\pi}{2})", [], [r"(\sqrt{9},\frac{\pi}{2})"]),
    (r"\begin{pmatrix}2&4\\6&8\end{pmatrix}", [], [r"2\begin{pmatrix}1&2\\3&4\end{pmatrix}"]),
    ("-2", [], [r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}"]),
]


@pytest.mark.parametrize(("reference", "done", "undone"), FORMS, ids=[row[0][:30] for row in FORMS])
def test_an_answer_is_worked_out_as_far_as_the_reference(reference: str, done: list[str], undone: list[str]) -> None:
    assert [answer for answer in [reference, *done] if VERIFIER.grade_answer(answer, reference).score != 1.0] == []
    assert [answer for answer in undone if VERIFIER.grade_answer(answer, reference).score != 0.0] == []
    assert [answer for answer in undone if EQUAL.grade_answer(answer, reference).score != 1.0] == []


def test_the_reason_is_told() -> None:
    verdict = VERIFIER.grade_answer("513^2-487^2", "26000")
    assert (verdict.outcome, verdict.detail["stage"]) == ("WRONG", "form")
    assert verdict.detail["reason"] == "a power of a number"


def test_lenient_extraction_judges_equality_alone_unless_asked() -> None:
    assert MathVerifier(extract="lenient").grade("so $2+3$", "5").score == 1.0
    assert MathVerifier(extract="lenient", form="evaluated").grade("so $2+3$", "5").score == 0.0
    with pytest.raises(ValueError, match="form: 'exact' is none of evaluated, any"):
        MathVerifier(form="exact")


def _problems(name: str) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [(row.get("problem") or row["question"], row["answer"]) for row in rows]


SUMS = [(f"{a} + {b} = ?", str(a + b)) for a in range(10, 99, 7) for b in range(11, 99, 9)]
"""Problems of recipes/quickstart.yaml."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math500", "amc23", "aime24", "gsm8k_test", "quickstart"])
def test_nothing_copied_from_a_problem_is_its_answer(name: str) -> None:
    """Formulas, sides, members and numbers of the text; but a number may be the reference itself, in any spelling."""
    found = []
    for problem, reference in SUMS if name == "quickstart" else _problems(name):
        gold = extract(reference, "hash").text or reference
        for copy in copies(problem):
            if VERIFIER.grade_answer(copy, reference).score == 1.0 and not is_itself(copy, gold):
                found.append((copy, gold))
    assert found == []
