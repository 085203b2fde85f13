"""R1's tags, and boxes: one rule, also where the template prefills the first tag."""

from __future__ import annotations

import pytest

from rewards import Outcome
from rewards.format import BoxedFormatVerifier, R1FormatVerifier


@pytest.mark.parametrize(
    ("text", "options", "holds"),
    [
        ("<think>a</think><answer>b</answer>", {}, True),
        (" <think>\na\n</think> \n <answer>b</answer>\n", {}, True),
        ("<think>a <b> c</think> <answer>1 < 2</answer>", {}, True),
        ("", {}, False),
        ("<think>a</think>", {}, False),
        ("<think>a</think> b", {}, False),
        ("<answer>b</answer><think>a</think>", {}, False),
        ("<think>a</think><think>a</think><answer>b</answer>", {}, False),
        ("<think>a<think>b</think></think><answer>b</answer>", {}, False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", {}, False),
        ("<think>a</think><answer>b", {}, False),
        ("<think></think><answer>b</answer>", {}, False),
        ("<think>a</think><answer> </answer>", {}, False),
        ("hello <think>a</think><answer>b</answer>", {}, False),
        ("<think>a</think> so <answer>b</answer>", {}, False),
        ("<think>a</think><answer>b</answer> bye", {}, False),
        ("<THINK>a</THINK><answer>b</answer>", {}, False),
        ("<think>a</think> so <answer>b</answer> bye", {"allow_surrounding_text": True}, True),
        ("hello <think>a</think><answer>b</answer>", {"allow_surrounding_text": True}, False),
        ("<think>a</think> the answer", {"require_answer": False}, True),
        ("<think>a</think> ", {"require_answer": False}, False),
        ("<think>a</think><answer>b</answer>", {"require_answer": False}, False),
    ],
)
def test_r1_tags(text: str, options: dict[str, bool], holds: bool) -> None:
    verdict = R1FormatVerifier(**options).grade(text, None)
    assert (verdict.score, verdict.outcome) == ((1.0, Outcome.CORRECT) if holds else (0.0, Outcome.BAD_FORMAT))
    assert holds or verdict.detail["reason"]


def test_a_prefilled_tag_is_part_of_the_text() -> None:
    """The caller joins prefill and completion; the verdict is that of a model that wrote it all."""
    assert R1FormatVerifier().grade("<think>" + "a</think> <answer>b</answer>", None).score == 1.0
    assert R1FormatVerifier().grade("<think>" + "<think>a</think> <answer>b</answer>", None).score == 0.0


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (r"so \boxed{5}", True),
        (r"<think>\boxed{1}</think> \boxed{5}", True),
        ("5", False),
        (r"\boxed{}", False),
        (r"\boxed{5", False),
        (r"\boxed{5} \boxed{5}", False),
    ],
)
def test_boxed(text: str, holds: bool) -> None:
    assert BoxedFormatVerifier().grade(text, None).score == float(holds)
