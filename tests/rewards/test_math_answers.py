"""MathVerifier against its policy: what counts as equal, kind by kind, and what never does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import BadReference, Outcome
from rewards.math_answers import MathVerifier
from rewards.pool import GradingPool, VerifierSpec

DATA = Path(__file__).resolve().parents[1] / "data"
PAIRS = [json.loads(line) for line in (DATA / "math_pairs.jsonl").read_text("utf-8").splitlines()]
VERIFIER = MathVerifier(form="any")
"""Judges equality alone; the form of an answer is the affair of test_form.py."""

# reference, answers that are right, answers that are not
POLICY: list[tuple[str, list[str], list[str]]] = [
    # numbers
    (r"\frac{1}{2}x+3", ["0.5x+3", "x/2+3", "3+.5x"], ["0.5x-3", "x+3"]),
    (
        r"\mathbb{R}\setminus\{2,-1\}",
        [r"(-\infty,-1)\cup(-1,2)\cup(2,\infty)"],
        [r"(-\infty,-1)\cup(2,\infty)", r"\mathbb{R}"],
    ),
    (r"\{1,2,3\}", [r"\{1,2\}\cup\{3\}", "1, 2, and 3"], ["(1,2,3)", "123"]),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", [], ["-3"]),
    (
        "5",
        [],
        [
            "5?",
            "5|6",
            "5 *",
            "5)",
            "(5,)",
            r"5 \text{ or six}",
            r"\text{not } 5",
            r"\approx 5",
            "5:1",
            r"500\%",
            r"5\\6",
            "5 6",
        ],
    ),
    ("5", ["5", "5.0", "+5", "x=5", "5 cm", "2+3", r"\frac{10}{2}", "5.", "05"], ["-5", "6", "5.001", "50", "5,5"]),
    ("1234", ["1,234", "1{,}234", r"1\,234", "1 234", "1234.00"], ["1,235", "(1,234)", r"\{1,234\}", "1, 234"]),
    ("(1,234)", ["(1, 234)"], ["1234", "1,234"]),
    ("0.5", [r"\frac12", "1/2", ".5", "0.50", r"50\%"], ["0.51", "50", "5"]),
    ("123456789012345678901", ["123456789012345678901.0"], ["123456789012345678902", "1.23456789012345678901"]),
    ("5e3", ["5000", r"5\times10^3", r"5.0 \cdot 10^{3}"], ["5", "500"]),
    (r"3\frac{1}{2}", ["3.5", "7/2", r"\frac{7}{2}"], ["3/2", "1.5"]),
    ("-3", [r"-\frac{6}{2}", "−3", "x = -3"], ["3"]),
    ("1e-7", ["10^{-7}"], ["2e-7", "0"]),
    ("I", ["I"], [r"\sqrt{-1}", "i^1"]),
    ("10^{-20}", ["1/10^{20}"], ["10^{-25}", "0"]),
    ("e^{-50}", [r"\frac{1}{e^{50}}"], [r"\pi^{-60}", "0"]),
    # rounding
    (r"\frac{1}{3}", ["0.3333", "0.333333"], ["0.33", "0.3", "0.3334"]),
    (r"\pi", [r"\pi", "π", r"\frac{2\pi}{2}"], ["3.14", "3.141593", "22/7"]),
    ("6.67", [r"\frac{20}{3}", "20:3"], ["6.7", "6.66", "6.6667", "7", "20:7"]),
    ("1.5", ["3/2"], ["1.5000004", "1.49"]),
    # percents, units, degrees, money
    (r"75\%", ["75%", "75 percent", "75", "0.75", r"\frac34"], ["7500", "0.0075", r"7.5\%"]),
    ("75", ["75", r"75\%"], ["0.75"]),
    ("100", ["100 dollars", r"100\%"], [r"1\%"]),
    (r"5\text{ cm}", ["5", "5 cm", r"5\,\mathrm{cm}", "5 centimeters"], ["5 km", r"5\text{ cm}^2", "6 cm"]),
    (r"15\mbox{ cm}^2", [r"15\text{ cm}^{2}", "15"], [r"15\text{ cm}^3"]),
    (r"90^\circ", ["90", "90°", r"\frac{\pi}{2}", r"90^{\circ}"], [r"\pi", "45"]),
    (r"\frac{2\pi}{3}", [r"120^\circ", r"2\pi/3"], ["120", r"60^\circ"]),
    (r"60^\circ 42'", ["60°42'", r"60.7^\circ"], [r"60^\circ", r"60^\circ 43'"]),
    (r"\$18.90", ["18.9", "$18.90", "18.90 dollars"], ["18.91"]),
    # bases, times, ratios
    ("101_2", ["101_2", "101_{2}", "101"], ["5", "110_2", "110", "101_3"]),
    ("5", ["101_2"], ["101_3"]),
    ("10:30", ["10:30"], [r"\frac13", "1:3", "10.5"]),
    ("2:3", ["4:6", "2/3"], ["3:2", "2:4"]),
    # tuples, sets, lists, intervals
    (
        "(1,2)",
        ["(1, 2)", r"\left(1,2\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"],
        [r"\{1,2\}", "1,2", "(2,1)", "[1,2]"],
    ),
    (r"\{1,2\}", [r"\{2,1\}", "1,2", "2 and 1"], ["(1,2)", "1", r"\{1,2,3\}"]),
    ("-2,1", ["1,-2", r"\{-2,1\}", "x=1, x=-2", "1 and -2", "1 or -2"], ["(-2,1)", "1", "-2", "1,-3", "1,-2,3"]),
    ("1", ["1"], ["1,1", "1, 2", "1 or 2"]),
    (r"\emptyset", [r"\{\}", "∅", r"\varnothing"], [r"\{0\}", "0"]),
    (r"1\pm\sqrt{2}", [r"1+\sqrt2, 1-\sqrt2", r"1 \mp \sqrt{2}"], [r"1+\sqrt{2}", r"1\pm\sqrt3"]),
    (r"(\pm1,\pm2)", ["(1,2),(1,-2),(-1,2),(-1,-2)"], ["(1,2),(-1,-2)"]),
    ("(3,\\infty)", ["x>3", "(3, +\\infty)", "3 < x"], ["x\\geq3", "[3,\\infty)", "(3, 10)", "x<3"]),
    ("x \\leq 2", ["(-\\infty, 2]", "2 \\ge x"], ["(-\\infty, 2)", "y \\leq 2", "x<2"]),
    ("-4<m\\leq0", ["(-4,0]", "m\\in(-4,0]"], ["[-4,0]", "(-4,1]"]),
    (
        r"(-\infty,0)\cup(1,\infty)",
        ["x<0 or x>1", r"(1,\infty)\cup(-\infty,0)"],
        [r"(-\infty,0)", r"(-\infty,0]\cup(1,\infty)"],
    ),
    (r"\{x|-1<x<1\}", ["(-1,1)", "-1<x<1", "|x|<1"], ["[-1,1]", "(-1,2)"]),
    (r"\mathbb{R}", [r"(-\infty,\infty)"], [r"(0,\infty)"]),
    # labels and equations
    ("x=3", ["3", "x = 3", "3 = x"], ["y=3", "x=4", "x>3"]),
    ("5", ["x=2+3=5"], ["3=5", "0=1=5", "y=3=5", "x<5=5", "x=5=6"]),
    ("y=2x+1", ["2x+1", "y=1+2x", "2x-y+1=0"], ["z=2x+1", "2x", "y=2x-1", "0=0", "1=2"]),
    ("2x+4y-3=0", [r"y=-\frac{1}{2}x+\frac34", "-4x-8y+6=0"], ["2x+4y+3=0", "1=2", "0"]),
    ("x^2+1=0", ["-x^2=1"], ["x^2+5=0", "1=2", "x=1"]),
    ("x^2=9", [], ["3", "x=3"]),
    ("xy=6", [r"\frac6x", "y=6/x"], [r"\frac{6}{x+1}"]),
    ("(p,q)=(3,2)", ["(3,2)", "p=3,q=2", "q=2, p=3"], ["(2,3)", "p=2, q=3"]),
    ("x=1,y=2", ["(1,2)", "y=2, x=1", "1, 2"], ["x=2, y=1", "2, 1"]),
    ("f(n)=2n+1", ["f(m)=2m+1", "2n+1"], ["f(m)=2m+2"]),
    # expressions
    ("1", [r"\sin^2 x+\cos^2 x"], [r"\sin x+\cos x"]),
    ("120", ["5!"], ["4!"]),
    ("x^2+2x+1", ["(x+1)^2", "x^2 + 2*x + 1", "1+x(x+2)"], ["x^2+2x", "(y+1)^2"]),
    (r"\sqrt{12}", [r"2\sqrt{3}", "12^{1/2}", "sqrt(12)"], [r"\sqrt{13}", "3.464101615"]),
    ("|x|", [r"\sqrt{x^2}"], ["x", "-x"]),
    (r"\ln 2", [r"\log 2", r"\frac{\ln 4}{2}"], [r"\log_{10} 2", "2"]),
    (r"2\arcsin\sqrt{a}", [r"\arccos(1-2a)"], [r"\arccos(1-3a)"]),
    ("2+3i", ["3i+2"], ["2-3i", "2+3j"]),
    ("5", [r"3^{2^{30}}-3^{2^{30}}+5", "(" * 500 + "5" + ")" * 500, "-" * 3000 + "5"], [r"9^{9^{9^{9}}}", "(10^9)!"]),
    (r"\frac{d!}{2k(d-k)!}", [r"\frac{\binom{d}{k}(k-1)!}{2}"], [r"\frac{d!}{k(d-k)!}"]),
    (r"\sum_{k=0}^{n} F_k G_{k}", [r"\sum_{k=0}^{n} G_{k} F_k"], [r"\sum_{k=1}^{n} F_k G_{k}"]),
    ("55", [r"\sum_{k=1}^{10} k"], [r"\sum_{k=1}^{10^9} k", r"\int_0^1 x^x dx"]),
    # matrices
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        [r"\begin{bmatrix}1 & 2 \\ 3 & 4\end{bmatrix}"],
        [r"\begin{pmatrix}1&2\end{pmatrix}"],
    ),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", ["(1,2)"], [r"\begin{pmatrix}1&2\end{pmatrix}", "1,2"]),
    # words and letters
    ("B", ["B", "b", "(B)", "B.", "B. 12", r"\text{B}", r"\textbf{(B)} 12"], ["A", "A,B", "A or B", "B, C", "12"]),
    ("(D) Alina", ["D", "(D)"], ["A", "Alina D"]),
    ("E", ["E"], ["2.718281828", "e^1", "E*2"]),
    (r"\text{even}", ["even", "Even", r"\text{even}."], ["neve", "odd", "evens", "not even"]),
    (r"\text{Evelyn}", ["Evelyn"], ["Eve"]),
    ("Yes", [r"\text{yes}", "Yes, it is"], ["No", "yes and no"]),
    ("The first player wins", ["first player", "The first player"], ["The second player", "player"]),
    ("No solution", [r"\text{no solutions}", r"\emptyset"], ["one solution", "0"]),
    (r"\exists x\in R, x^2+1<0", [r"\exists x \in \mathbb{R}, x^2 + 1 < 0"], [r"\exists x\in R, x^2+1>0"]),
    (r"p \land q", [r"p\land q"], [r"p \lor q"]),
    ("①③", ["③①", r"\text{①③}"], ["①②", "13"]),
    # points at the edge, repeating decimals, mixed numbers, ordinals
    ("125", ["125."], [".125", "0.125"]),
    (r"\frac18", [".125"], ["125"]),
    (r"\frac{5}{6}", [r"0.8\overline{3}", "0.8333"], [r"0.\overline{83}", "0.83"]),
    ("7/4", ["1 3/4", r"1\frac34"], ["13/4"]),
    ("21", ["21st", r"21^{\text{st}}"], ["2^{1}"]),
    ("33.33%", [r"\frac13", r"33\frac13\%"], [r"\frac14", "0.34"]),
    ("16.67", [r"16\frac23"], [r"16\frac13", "16.6700001"]),
    # residues, bases, ratios, times, temperatures
    (r"6\pmod 7", ["6", r"6 \pmod{7}"], [r"6\pmod 9"]),
    ("1011_2", [r"1011_{\text{two}}"], [r"1011_{\text{three}}", "11"]),
    ("3:5", ["6:10", r"\frac35"], ["5:3"]),
    ("09:30", ["9:30"], ["10:30"]),
    (r"36^\circ", [r"\frac{\pi}{5}"], [r"36\text{ rad}"]),
    (r"20^\circ\text{C}", ["20"], [r"20^\circ\text{F}"]),
    (r"\$6", ["6", "6 dollars"], ["6 cents"]),
    # labels: functions, segments, angles, several at once
    ("f(x)=3x", ["f(t)=3t", "3x"], ["g(x)=3x", "f'(x)=3x"]),
    ("f(x)=cx", ["f(x)=kx"], ["f(x)=x", "f(x)=c"]),
    ("AB=5", ["5"], ["CD=5"]),
    (r"\angle A=50^\circ", [r"50^\circ"], [r"\angle B=50^\circ"]),
    ("|x|=3", [], ["3", "x=3"]),
    ("x=y=2", ["x=2, y=2"], ["x=2, y=3"]),
    ("a=b=c", ["c=a=b"], ["a=b=d", "a=b"]),
    (r"x\in\{1,2\}", ["1,2", "x=1, x=2"], ["1", "(1,2)"]),
    # families, regions, nested sets
    (r"k\pi, k\in\mathbb{Z}", [r"x=n\pi, n\in\mathbb{Z}", r"k\pi"], [r"2k\pi", r"k\pi, k\in\mathbb{N}"]),
    (r"(-\infty,1)\cup(2,\infty)", [r"\mathbb{R}\setminus[1,2]"], [r"\mathbb{R}\setminus(1,2)"]),
    ("|x-2|<1", ["(1,3)", "1<x<3"], ["(-1,1)"]),
    (r"\emptyset", [r"\varnothing"], [r"\{\emptyset\}"]),
    (r"\{\{1\},2\}", [], [r"\{1,2\}"]),
    (r"\lceil\frac{n+1}{2}\rceil", [r"\lfloor\frac n2\rfloor+1"], [r"\lfloor\frac n2\rfloor"]),
    # bases, units and numbers in words; what is printed as one number; names that differ
    ("1101_2", ["(1101)_2"], ["15_8", "13_{10}", "13"]),
    ("255_{10}", ["255"], ["377_8"]),
    ("5", [r"5\text{ apples}"], [r"5\text{ million}", "5 hundred", "5 squared", "5 halves", r"5\text{ below zero}"]),
    ("5000000", [r"5\text{ million}", r"5\text{ million dollars}"], [r"5\text{ billion}"]),
    (r"8\text{ pm}", [r"8\text{ p.m.}"], [r"8\text{ am}", "8"]),
    (r"3\text{ miles north}", ["3"], [r"3\text{ miles south}"]),
    ("51", [], ["{5}{1}", r"\cancel{51}", "5{1}"]),
    ("1", [r"7\bmod 3"], ["7"]),
    ("24", ["4!=24"], ["24!=25", "4!=25"]),
    ("7", [r"7\pmod 9"], [r"7\bmod 3", "7_{9}1"]),
    ("x=1, y=2", ["y=2, x=1"], ["x=1, x=2", "1"]),
    ("f(x)=2x", ["f(y)=2y"], ["f(y)=2x"]),
    (r"4\text{ km east}", ["4 km"], [r"4\text{ m east}", r"4\text{ km west}"]),
    (r"\mathbb{R}", [r"\text{all real numbers}"], [r"\text{all positive real numbers}"]),
    (r"\{(1,2)\}", ["(1,2)"], ["(2,1)", r"\{1,2\}"]),
    (r"\infty", [r"\text{infinity}"], [r"-\infty"]),
    ("0", [], ["0x1", "0b1", r"\infty-\infty"]),
    ("(B) 12", ["B", "(B) 12.0", "B. because"], ["(B) 13", "12 C"]),
    ("|AB|=5", ["5", "|AB|=5.0"], ["|AC|=5"]),
    ("P(A)=0.5", ["0.5"], ["P(B)=0.5"]),
    (r"A\cap B=\{1\}", [r"B\cap A=\{1\}"], [r"A\cup B=\{1\}"]),
    ("x=1, x=2", ["x_1=2, x_2=1"], ["y=1, y=2"]),
    ("f(x)=cx+d", ["f(x)=ax+b"], ["f(x)=ax-b", "f(x)=dx+c"]),
    (r"\binom{2n}{n}", ["C_{2n}^{n}"], ["C_{2n}^{2}"]),
    ("[0,2)", [r"[0,1)\cup[1,2)", r"x\ge0, x<2"], [r"[0,1)\cup(1,2)", r"x<0, x\ge2"]),
    ("1<x<2", [r"x>1\text{ and }x<2"], [r"x>1\text{ or }x<2", "x>1, y<2"]),
    ("5", ["5\u200b", "0" * 500 + "5", "5." + "0" * 500], ["5\u200b6", "5." + "0" * 500 + "1"]),
    (r"\begin{pmatrix}2&4\\6&8\end{pmatrix}", [r"2\begin{pmatrix}1&2\\3&4\end{pmatrix}"], ["2"]),
    ("-2", [r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}"], ["2"]),
]

LENIENT: list[tuple[str, list[str], list[str]]] = [
    ("3,5", ["the roots are $x=3$ and $x=5$.", r"$x=\boxed{3}$ and $x=\boxed{5}$"], ["so $x=3$"]),
    ("(4,7)", ["They meet at the point (4, 7).", r"$\{4,7\}$"], ["They meet at (7, 4)."]),
    ("9", ["$p+q=9$", "so $x = 3+4 = 9$", "Answer: $a=9$, where $b=7$"], ["$p+q=8$"]),
    ("$44\\%$", [r"$\boxed{44}$%", r"\boxed{44}\%"], [r"\boxed{45}\%"]),
    ("2,75", ["it is 2.75"], ["it is 275"]),
    ("42", ["There are $42$ such pairs $(a,b)$.", "It takes 42 hours (that is 1.75 days)."], ["42 less 2 is 40."]),
    ("7", ["The value of $x$ is 7.", "$x=7$ (since $x>0$)", "The remainder is 7 when divided by 9."], ["it is $x$"]),
    ("1,4", ["The roots are 1 and 4."], ["The roots are 1 and 5."]),
    ("$30$ minutes", ["30 minutes", "30"], ["30 hours"]),
    ("3:2", ["The ratio is 3:2."], ["The ratio is 2:3."]),
    (r"$\frac{5}{12}$", [r"Answer: \frac{5}{12}"], [r"Answer: \frac{12}{5}"]),
    ("No", ["No, because it is odd."], ["Yes, because it is odd."]),
    ("3/4", [r"The answer is $\frac{3}{4}$, or 75%."], [r"The answer is $\frac{3}{4}$ or $\frac{1}{4}$."]),
    ("$2\\sqrt{3}$", ["2*sqrt(3)"], ["2*sqrt(5)"]),
    ("B", ["Answer: b"], ["A and B", "Answer: B or C"]),
    ("C", ["It is C, not D.", "C, since D is false", "I pick C because A is wrong."], ["It is not C, it is D"]),
    (r"$\frac{2}{7}$", [r"the probability equals \frac{2}{7}"], ["7"]),
]


def _right(answer: str, reference: str) -> bool:
    return VERIFIER.grade_answer(answer, reference).outcome is Outcome.CORRECT


@pytest.mark.parametrize(("reference", "right", "wrong"), POLICY, ids=[row[0][:30] for row in POLICY])
def test_policy(reference: str, right: list[str], wrong: list[str]) -> None:
    VERIFIER.check_reference(reference)
    assert [answer[:80] for answer in [reference, *right] if not _right(answer, reference)] == []
    assert [answer[:80] for answer in wrong if _right(answer, reference)] == []


@pytest.mark.parametrize(("reference", "right", "wrong"), LENIENT, ids=[row[0] for row in LENIENT])
def test_lenient_policy(reference: str, right: list[str], wrong: list[str]) -> None:
    verifier = MathVerifier(extract="lenient")
    assert [text for text in right if verifier.grade(text, reference).score != 1.0] == []
    assert [text for text in wrong if verifier.grade(text, reference).score != 0.0] == []


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{13}, or maybe \boxed{12}",
        r"$x=\boxed{12}$ or $x=\boxed{-12}$",
        r"$x=\boxed{10}$ and $y=\boxed{12}$",
        r"\boxed{12} is wrong.",
        r"\boxed{0.12}\%",
    ],
)
def test_boxes_that_do_not_commit_to_the_answer(completion: str) -> None:
    assert VERIFIER.grade(completion, "12").score == 0.0


@pytest.mark.parametrize(
    "ending",
    ["1,250", "1250", "1250<|endoftext|>", "1250</s>", "1250%", "$1250", "1250.", " 1250.00 ", "1250 pages per day"],
)
def test_the_number_behind_the_hashes(ending: str) -> None:
    """GSM8K's published solutions, with the calculator's annotations before the answer."""
    completion = f"He has 5*250=<<5*250=1250>>1250.\n#### {ending}"
    assert MathVerifier(extract="hash").grade(completion, "1,250").score == 1.0
    assert MathVerifier(extract="hash").grade(completion, "1251").score == 0.0
    assert MathVerifier(extract="hash").grade(completion + " or 1251", "1,250").score == 0.0


def test_policy_holds_inside_a_box_too() -> None:
    for reference, right, wrong in POLICY:
        for answer in right:
            assert VERIFIER.grade(rf"So \boxed{{{answer}}}.", reference).score == 1.0, (reference, answer)
        for answer in wrong:
            assert VERIFIER.grade(rf"So \boxed{{{answer}}}.", reference).score == 0.0, (reference, answer)


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        (r"\boxed{5}", Outcome.CORRECT),
        (r"\boxed{6}", Outcome.WRONG),
        ("5", Outcome.NO_ANSWER),
        (r"\boxed{}", Outcome.NO_ANSWER),
        (r"\boxed{\frac{1}{}", Outcome.NO_ANSWER),
        (r"\boxed{+*/}", Outcome.UNREADABLE),
        (r"\boxed{9^{9^{9^{9}}}}", Outcome.UNREADABLE),
        (r"\boxed{" + "7" * 5000 + "}", Outcome.UNREADABLE),
        (r"\boxed{1/0}", Outcome.UNREADABLE),
    ],
)
def test_outcomes(completion: str, outcome: Outcome) -> None:
    verdict = VERIFIER.grade(completion, "5")
    assert verdict.outcome is outcome
    assert verdict.score == (1.0 if outcome is Outcome.CORRECT else 0.0)


@pytest.mark.parametrize(
    ("mode", "completion"),
    [("answer_tag", "<answer>5</answer>"), ("hash", "so\n#### 5"), ("lenient", "I think it is 5 apples")],
)
def test_other_extractions(mode: str, completion: str) -> None:
    assert MathVerifier(extract=mode).grade(completion, "5").score == 1.0
    assert MathVerifier(extract="boxed").grade(completion, "5").outcome is Outcome.NO_ANSWER


@pytest.mark.parametrize(
    "reference", ["", "  ", None, [], True, float("nan"), r"\frac{1}{", "{", "...", "3=5", "7" * 5000, "1/0"]
)
def test_references_that_cannot_be_graded_are_refused(reference: Any) -> None:
    with pytest.raises(BadReference):
        VERIFIER.check_reference(reference)


@pytest.mark.parametrize(
    "reference", ["72", 72, 0.5, "1,234", r"\frac{3}{4}", "A", r"\text{east}", "Tom's house", r"$x=3$"]
)
def test_references_that_can_be_graded_are_accepted(reference: Any) -> None:
    VERIFIER.check_reference(reference)
    assert VERIFIER.grade(rf"\boxed{{{reference}}}", reference).score == 1.0


def test_verdicts_are_cached_by_reference_and_extracted_answer() -> None:
    verifier = MathVerifier(cache=2)
    first = verifier.grade(r"long work \boxed{\sqrt{4}}", "2")
    assert verifier.grade(r"other work \boxed{\sqrt{4}}", "2") is first
    verifier.grade(r"\boxed{1}", "2")
    verifier.grade(r"\boxed{3}", "2")
    assert verifier.grade(r"\boxed{\sqrt{4}}", "2") is not first  # the oldest was dropped
    assert MathVerifier(cache=0).grade(r"\boxed{1}", "1").score == 1.0


def _references() -> Iterator[str]:
    for name in ("math500", "aime24", "amc23"):
        for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines():
            yield json.loads(line)["answer"]


def test_every_reference_of_the_benchmarks_is_gradable_and_equals_its_respellings() -> None:
    failed = []
    for reference in _references():
        VERIFIER.check_reference(reference)
        respelt = [
            reference.replace("\\frac", "\\dfrac"),
            f"${reference}$",
            reference.replace("(", "\\left(").replace(")", "\\right)"),
            f" {reference.replace('+', ' + ')}.",
        ]
        failed += [(reference, other) for other in respelt if not _right(other, reference)]
    assert failed == []


def _conformance(split: str, extract: str) -> Counter[tuple[bool, bool]]:
    """(label, our verdict) -> count over the pairs of a split, in worker processes as in training."""
    pairs = [pair for pair in PAIRS if pair["split"] == split]
    spec = VerifierSpec("rewards.math_answers:MathVerifier", {"extract": extract, "form": "any"})
    with GradingPool({"math": spec}, timeout=5.0) as pool:
        futures = [
            pool.submit("math", pair["pred"], pair["gold"], kind="answer" if pair["mode"] == "answer" else "grade")
            for pair in pairs
        ]
        verdicts = [future.result().verdict for future in futures]
    return Counter((pair["expected"], verdict.score == 1.0) for pair, verdict in zip(pairs, verdicts, strict=True))


@pytest.mark.slow
def test_conformance_adversarial_boxed_has_no_false_accept() -> None:
    counts = _conformance("adversarial", "boxed")
    assert counts[False, True] == 0
    assert counts[True, True] + counts[False, False] >= 0.96 * counts.total()


@pytest.mark.slow
def test_conformance_regular_lenient() -> None:
    counts = _conformance("regular", "lenient")
    assert counts[True, True] + counts[False, False] >= 0.93 * counts.total()


@pytest.mark.slow
def test_conformance_hard() -> None:
    counts = _conformance("hard", "boxed")
    assert counts[True, True] >= 0.70 * (counts[True, True] + counts[True, False])
    assert counts[False, False] >= 0.99 * (counts[False, True] + counts[False, False])


PIECES = r"""
0 1 2 3 7 9 . , ; : x y z e i + - * / ^ _ ( ) { } [ ] | = < > ! % $ & ' " \frac \sqrt \pi \left( \right) \{ \} \text{
\boxed{ \pm \cup \infty \in \leq \sin \log \sum \int \begin{pmatrix} \end{pmatrix} \\ \deg and or ^{ _{ 10 123 e5
"""
LATEX = st.lists(st.sampled_from([" ", *PIECES.split()]), max_size=25).map("".join)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.text(max_size=60), LATEX), st.sampled_from(["5", r"\frac{3}{4}", "(1,2)", "x=3", r"\text{even}", "B"])
)
def test_grading_never_raises(answer: str, reference: str) -> None:
    """Any text, also near-LaTeX, gets a scored verdict against a reference that was accepted."""
    verifier = MathVerifier(cache=0, second_stage=False)
    assert verifier.grade_answer(answer, reference).outcome.is_scored
    assert verifier.grade(rf"\boxed{{{answer}}}", reference).outcome.is_scored
    assert MathVerifier(extract="lenient", second_stage=False).grade(answer, reference).outcome.is_scored


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.one_of(LATEX, st.from_regex(r"-?\d{1,6}(\.\d{1,4})?|\\frac\{\d{1,3}\}\{[1-9]\d?\}", fullmatch=True)))
def test_an_accepted_reference_is_a_right_answer_to_itself(reference: str) -> None:
    verifier = MathVerifier(cache=0, second_stage=False)
    try:
        verifier.check_reference(reference)
    except BadReference:
        return
    assert verifier.grade_answer(reference, reference).outcome is Outcome.CORRECT
    assert verifier.grade_answer(f" {reference} ", reference).outcome is Outcome.CORRECT


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_when_they_are(a: int, b: int) -> None:
    assert _right(str(a), str(b)) == (a == b)
    assert _right(f"{a:,}", str(a))
    assert _right(f"{a}.0", str(a))
    assert not _right(str(a + 1), str(a))


def _random_expression(rng: random.Random, depth: int) -> sympy.Expr:
    """Polynomials, roots, quotients and functions of x and y, with small integers."""
    x, y = sympy.symbols("x y")
    if depth == 0:
        return rng.choice([x, y, sympy.Integer(rng.randint(-9, 9)), sympy.Rational(rng.randint(1, 9), 7), sympy.pi])
    a, b = _random_expression(rng, depth - 1), _random_expression(rng, depth - 1)
    kind = rng.randrange(7)
    if kind < 2:
        return a + b
    if kind < 4:
        return a * b
    if kind == 4:
        return a / (b**2 + 1)
    if kind == 5:
        return a ** rng.choice([2, 3])
    return rng.choice([sympy.sin, sympy.cos, sympy.exp])(a) + sympy.sqrt(b**2 + 2)


@pytest.mark.slow
def test_sympy_is_the_oracle_for_expressions() -> None:
    """What sympy prints of an expression and of its rearrangements is equal; what differs by a bit is not."""
    rng = random.Random(3)
    wrong = []
    for _ in range(60):
        expression = _random_expression(rng, 2)
        gold = sympy.latex(expression)
        for other in (sympy.expand(expression), sympy.together(expression)):
            if not _right(sympy.latex(other), gold):
                wrong.append((True, gold, sympy.latex(other)))
        for other in (expression + 1, expression * 2 + sympy.Symbol("x") ** 2, -expression + sympy.Rational(1, 3)):
            if sympy.expand(other - expression) != 0 and _right(sympy.latex(other), gold):
                wrong.append((False, gold, sympy.latex(other)))
    assert wrong == []


def test_importing_the_library_imports_neither_torch_nor_sympy() -> None:
    program = (
        "import sys, rewards, rewards.pool, rewards.math_answers, rewards.format, rewards.countdown, rewards.combine\n"
        "rewards.math_answers.MathVerifier().grade('\\\\boxed{5}', '5')\n"
        "print([name for name in ('torch', 'sympy', 'mpmath', 'flint', 'rlvr') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("extract", ["boxed", "hash", "lenient"])
def test_a_worked_solution_of_gsm8k_is_a_reference(extract: str) -> None:
    """The column `answer` of GSM8K, as it is: what follows ``####`` counts, on both sides."""
    verifier = MathVerifier(extract=extract)
    gold = "He has 2*9=<<2*9=18>>18 boys and 1,000 girls.\n#### 1,018"
    verifier.check_reference(gold)
    for answer, score in (("1018", 1.0), ("1,018", 1.0), ("1018.", 1.0), ("18", 0.0), ("1,019", 0.0)):
        assert verifier.grade(f"so \\boxed{{{answer}}}\n#### {answer}", gold).score == score


@pytest.mark.parametrize(
    ("reference", "answer", "is_right"),
    [
        ("7!!", "105", True),
        ("3!!", "720", False),  # (3!)!
        ("(3!)!", "720", True),
        ("8!!", "384", True),
        ("0!!", "1", True),
        ("2024-01-02", "2024-01-02", True),
        ("2024-01-02", "2024-02-01", False),  # the same difference
        ("2024-01-02", "2021", False),
        ("4/2/2024", "2/1/2024", False),  # the same quotient
        ("2021", "2024-01-02", False),
    ],
)
def test_double_factorials_and_dates(reference: str, answer: str, is_right: bool) -> None:
    verdict = MathVerifier().grade(rf"\boxed{{{answer}}}", reference)
    assert (verdict.score == 1.0) is is_right, verdict
