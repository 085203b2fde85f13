"""Equality of values is proved: neighbours that first digits cannot tell apart differ; what is equal is found to be."""

from __future__ import annotations

import pytest

from rewards.math_answers import MathVerifier

VERIFIER = MathVerifier(form="any")

EQUAL = [
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
    (r"\frac{1}{\sqrt2-1}", r"\sqrt2+1"),
    (r"\sqrt2+\sqrt3+\sqrt5+\sqrt7", r"\sqrt7+\sqrt5+\sqrt3+\sqrt2"),
    (r"\sqrt[3]{9}\sqrt[3]{3}", "3"),
    (r"\sqrt[7]{2}+\sqrt[5]{3}+\sqrt[11]{7}", r"\sqrt[5]{3}+\sqrt[7]{2}+\sqrt[11]{7}"),
    (r"\sin\frac{\pi}{6}", "0.5"),
    (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"),
    (r"\tan 100^\circ + 4 \sin 100^\circ", r"-\sqrt3"),
    (r"\ln 8", r"3\ln 2"),
    (r"\ln 6", r"\ln 2+\ln 3"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"\frac{e^2}{4}", r"\frac14e^2"),
    (r"e^{\ln 2}", "2"),
    (r"e^{i\pi}", "-1"),
    (r"\cosh(\ln 2)", r"\frac54"),
    (r"\arctan\frac12+\arctan\frac13", r"\frac{\pi}{4}"),
    (r"\arccos(-\frac13)", r"\pi-\arccos\frac13"),
    (r"\sin^2 1+\cos^2 1", "1"),
    ("((1+i)(1-i))^3", "8"),
    ("(i^2)^3", "-1"),
    (r"\sqrt{i^2+5}", "2"),
    (r"(1+i)^2(1-i)^2 \cdot \left(i^2\right)^{3}", "-4"),
    (r"\sqrt{x^2}", "|x|"),
    (r"\ln x^2", r"2\ln|x|"),
    (r"\frac{\sin 2x}{2}", r"\sin x\cos x"),
]
DIFFERENT = [
    ("9^{9^9}+1", "9^{9^9}"),
    ("2^{100000}+1", "2^{100000}"),
    ("e^{100}+1", "e^{100}"),
    (r"\sqrt{10^{60}+1}", "10^{30}"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"),
    (r"\pi^{\pi}+10^{-300}", r"\pi^{\pi}"),
    (r"\frac13+10^{-4000}\pi", r"\frac13"),
    (r"\sqrt{5}+\sqrt{22+2\sqrt5}+10^{-60}", r"\sqrt{11+2\sqrt{29}}+\sqrt{16-2\sqrt{29}+2\sqrt{55-10\sqrt{29}}}"),
    ("x^{5000}+1", "x^{5000}"),
    ("x+10^{-60}", "x"),
    (r"\ln x+10^{-200}", r"\ln x"),
    (r"2\ln x", r"\ln x^2"),
    (r"\ln x", r"\ln|x|"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_equal_values_are_found_equal(answer: str, reference: str) -> None:
    assert VERIFIER.grade_answer(answer, reference).score == 1.0
    assert VERIFIER.grade_answer(reference, answer).score == 1.0


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_neighbours_are_not_equal(answer: str, reference: str) -> None:
    VERIFIER.check_reference(reference)
    assert VERIFIER.grade_answer(answer, reference).score == 0.0


def test_what_has_no_value_is_unreadable() -> None:
    for answer in (r"\ln 0", r"\frac{1}{\pi-\pi}", r"\infty-\infty"):
        assert VERIFIER.grade_answer(answer, r"\sqrt2").score == 0.0
