r"""Extraction by its stated rules: what the strict modes take, and everything that is no answer."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.extract import MODES, candidates, check_mode, extract, find_boxed, spans
from rewards.math_answers import MathVerifier


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"first \boxed{3}. Then \boxed{5}", "5"),  # earlier boxes are ignored
        (r"<think>\boxed{3}</think> \boxed{5}", "5"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{x^2}\boxed{x^3}", "x^2, x^3"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{ and so on \boxed{5}", "5"),
        (r"a stray { then \boxed{5}", "5"),
        (r"a stray } then \boxed{5}", "5"),
        (r"\boxed{7}. The answer is 7.", "7"),
        (r"\boxed{7}. The answer is $7$ apples.", "7"),
        ("", None),
        ("The answer is 5.", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{5} \boxed{", None),
        (r"\boxed{5} \boxed{}", None),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
        (r"<think>\boxed{7}</think> I give up", None),
        (r"<think>\boxed{7}", None),
        (r"\boxed{3} or \boxed{5}", None),
        (r"\boxed{5} or $\boxed{5}$", None),
        (r"It is not \boxed{5}", None),
        (r"\boxed{7}. Wait, the answer is 8", None),
        (r"\boxed{8}. Final answer is 7. I hope it is correct.", None),
        (r"\boxed{7}. No, that is wrong.", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    found = extract(text, "boxed")
    assert found.text == answer
    assert bool(found.reason) == (answer is None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>t</think> <answer> 5 </answer>", "5"),
        ("<answer>3</answer> <answer>5</answer>", "5"),
        (r"<answer>so \boxed{5}</answer>", "5"),
        ("<answer>3</answer> <answer>5", None),
        ("<answer> </answer>", None),
        ("<think><answer>5</answer></think>", None),
        ("<think><answer>5</answer>", None),
        (r"\boxed{5}", None),
        (r"<answer>\boxed{}</answer>", None),
    ],
)
def test_answer_tag(text: str, answer: str | None) -> None:
    assert extract(text, "answer_tag").text == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("work\n#### 72", "72"),
        ("#### 1\n#### 1,234\nmore", "1,234"),
        ("72", None),
        ("#### \n72", "72"),
        ("#### \nso it is", None),
        ("#### 42 (since 6*7=42)", "42"),
        ("####", None),
    ],
)
def test_hash(text: str, answer: str | None) -> None:
    assert extract(text, "hash").text == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the answer of <<3*6=18>>18 boys is 5 more\n#### 18", "18"),
        ("the answer is 3.\n#### $1,800.\n", "$1,800."),
        ("2*9=18\n#### -.5<|endoftext|>", "-.5"),
        ("\\boxed{7}\n#### 18 red cars", "18 red cars"),
        ("\\boxed{7}\n#### 2. Check", "7"),
        ("\\boxed{7}\n#### Step 2", "7"),
    ],
)
def test_a_last_line_of_gsm8k_comes_before_all_phrases_and_a_heading_does_not(text: str, answer: str) -> None:
    assert next(candidates(text)).startswith(answer.removesuffix(" red cars"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The final answer is 7. I hope it is correct.", "7"),
        (r"It is \boxed{7} of course", "7"),
        ("Answer: $x=3$", "$x=3$"),
        ("so there are 12 apples", "12"),
        ("Soucis : 2,74 $ a..", "2.74"),
        ("她有 **3页**", "3"),
    ],
)
def test_lenient_has_the_answer_among_its_first_readings(text: str, answer: str) -> None:
    assert answer in list(candidates(text))[:3]


def test_unknown_modes_are_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"extract: 'boxd' is none of .*did you mean 'boxed'"):
        check_mode("boxd")
    with pytest.raises(ValueError, match="none of"):
        extract("x", "regex")


@pytest.mark.parametrize("unit", ["\\boxed{", "\\boxed{1}", "}", "$", "answer is ", "\\", "<think>", "\\boxed{1} and "])
@pytest.mark.parametrize("mode", MODES)
def test_long_hostile_texts_take_linear_time(unit: str, mode: str) -> None:
    start = time.monotonic()
    extract(unit * 20_000, mode)
    assert time.monotonic() - start < 10


@given(st.text(alphabet=r"\boxed{}<answer>/think#.,or and1 ", max_size=200), st.sampled_from(MODES))
def test_extraction_never_raises_and_never_invents(text: str, mode: str) -> None:
    found = extract(text, mode)
    assert found.text is None or found.text.strip()
    for box in find_boxed(text):
        assert box.content is None or box.content in text


def test_a_letter_glued_to_the_number_behind_the_hashes_is_a_unit() -> None:
    """GSM8K labels are numbers; where the reference has the letter itself it stays what it is."""
    for mode in ("hash", "lenient"):
        verifier = MathVerifier(extract=mode)
        for answer in ("26g", "26 g", "26 grams", "26cm", "26"):
            assert verifier.grade(f"text so\n#### {answer}", "26").score == 1.0, (mode, answer)
        assert verifier.grade("text so\n#### 26g", "26 kg").score == 0.0
        assert verifier.grade("text so\n#### 26x", "26").score == 0.0
        assert verifier.grade("text so\n#### 26 g", "26 g").score == 1.0


HOSTILE = [
    ("#### 1", " a", ""), ("#### -", " ", "x"), ("5", " ", "\n#### 1 "), ("#### 1", " ", "<a"), ("#### 1", " </a", ""),
    (r"\boxed{1}", " ", "x"), (r"\boxed{1} answer is 1", " ", "-x"), (r"\boxed{", r"\land ", "}"),
    (r"\boxed{", "<sup>", "}"), (r"\boxed{①", " ", "x}"), (r"\boxed{st 1", " ", "x}"), (r"\boxed{1, ", "for ", "}"),
    (r"\boxed{1 \mod", "~", "}"), (r"\boxed{x\in", "~", "}"), (r"\boxed{", "(", "}"), (r"\boxed{/", "1 ", "}"),
    ("final answer is x", " ", "y"), ("", "final answer is ", ""), ("it's", " ", "x"), ("1", ",111", "1"),
    ("", "1", ""), ("", r"\(", ""), ("", r"\[", ""), ("", "$", ""), ("", r"\(x$$ ", ""), ("", r"\boxed{", ""),
    ("", "A and ", "x"), ("are ", "1, ", "x"), ("1 since ", "x ", "."), ("", "(that is", ""), ("", "(1,", ""),
    ("", "<answer>", ""),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_no_text_costs_more_than_its_length(mode: str) -> None:
    """In the time of a pattern that is linear in the text there is room for 200 000 characters; a pattern of the
    square takes minutes, and of the cube for ever. It is the process's own time, not the clock's."""
    verifier = MathVerifier(extract=mode, second_stage=False)
    verifier.warm_up()
    for head, unit, tail in HOSTILE:
        text = head + unit * (200_000 // len(unit)) + tail
        for reference in ("1", "B") if mode == "lenient" else ("1",):
            start = time.process_time()
            assert verifier.grade(text, reference).outcome.is_scored
            assert time.process_time() - start < 2.0, (head, unit, tail)


def test_formulas_are_found_as_a_pattern_would_find_them() -> None:
    """One pass gives what the alternatives of one expression give, which takes the square of the text's length."""
    pattern = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)", re.DOTALL)
    draw, parts = random.Random(1), ["$", "$", r"\$", "$$", r"\[", r"\]", r"\(", r"\)", "a", "\\", " "]
    for _ in range(5_000):
        text = "".join(draw.choices(parts, k=draw.randint(0, 14)))
        wanted = [(m.start(), m.end(), next(g for g in m.groups() if g is not None)) for m in pattern.finditer(text)]
        assert list(spans(text)) == wanted, text
