"""One key, one problem: what a canonical key forgives and what it must not."""

from __future__ import annotations

import pytest

from rlvr.problems.keys import arithmetic_key, countdown_key, problem_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3*7?", "what is  3 * 7 ?\n"),
        ("What is 3*7?", "What is 7*3?"),
        ("Compute $3 \\times 7$.", "Compute 7 \\cdot 3"),
        ("Compute $12+5$", "compute 5 + 12 ."),
        ("Find $\\left( \\dfrac{1}{2} \\right)$", "find $(\\frac{1}{2})$"),
        ("Let $f(x)\\,=\\,x$", "Let \\(f(x) = x\\)"),
        ("Janet’s ducks, she says, lay eggs.", "Janet's ducks she says lay eggs"),
        ("“Hello!” said Tom; he left", '"Hello" said Tom, he left.'),
        ("x − 3", "x - 3"),
    ],
)
def test_ways_of_writing_one_problem_share_a_key(one: str, other: str) -> None:
    assert problem_key(one) == problem_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3*7?", "What is 37?"),
        ("What is 3*7?", "What is 3+7?"),
        ("What is 3-7?", "What is 7-3?"),
        ("What is 3/7?", "What is 7/3?"),
        ("What is 2-3*7?", "What is 2-7*3?"),  # equal in value, but not the lone product that the key sorts
        ("What is 2-3+7?", "What is 2-7+3?"),  # not even equal
        ("What is 2^3*7?", "What is 2^7*3?"),
        ("What is 1.5?", "What is 15?"),
        ("What is 3 7?", "What is 37?"),
        ("f(1,2)", "f(12)"),
        ("f(1,2)", "f(1 2)"),
        ("ratio 3:4", "ratio 3 4"),
        ("What is 5!?", "What is 5?"),
        ("(3+7)*2", "3+7*2"),
        ("f'(x)", "f(x)"),
        ("x - 3", "x + 3"),
        ("x < 3", "x \\leq 3"),
        ("\\alpha", "alpha"),
        ("20% of 5", "20 of 5"),
    ],
)
def test_different_problems_keep_different_keys(one: str, other: str) -> None:
    assert problem_key(one) != problem_key(other)


def test_arithmetic_and_countdown_keys() -> None:
    assert arithmetic_key(7, "*", 3) == arithmetic_key(3, "*", 7) == "arithmetic:3*7"
    assert arithmetic_key(7, "+", 3) == "arithmetic:3+7"
    assert arithmetic_key(7, "-", 3) == "arithmetic:7-3" != arithmetic_key(3, "-", 7)
    assert countdown_key([7, 3, 5], 15) == countdown_key([5, 7, 3], 15) == "countdown:3,5,7->15"


def test_of_chat_messages_the_system_does_not_count_and_earlier_turns_do() -> None:
    user = {"role": "user", "content": "What is 3*7?"}
    assert problem_key(({"role": "system", "content": "Be brief."}, user)) == problem_key("What is 3*7?")
    earlier = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, user)
    assert problem_key(earlier) != problem_key((user,))
