"""The program in a completion, and when two outputs count as the same."""

from __future__ import annotations

import math
import time

import pytest

from rewards.checkers import outputs_agree, values_agree
from rewards.program_text import Wanted, extract_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na = 1\n```", "a = 1"),
        ("```py\na = 1\n```\nor\n```python\nb = 2\n```", "b = 2"),
        ("```python\na = 1\n```\nOutput:\n```\n5\n```", "a = 1"),  # a marked block goes before an unmarked one
        ("```\na = 1\n```", "a = 1"),
        ("```python\na = 1\n```\n```python\nb =", "b ="),  # a block that never closes is the last one all the same
        ("~~~python\na = 1\n~~~", "a = 1"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("<think>```python\nbad\n```</think>```python\ngood\n```", "good"),
        ("<think>\n```python\nbad\n```\n", None),  # thinking that never ends
        ("</think>\nprint(1)", "\nprint(1)"),
        ("  ```python\n  a = 1\n  ```", "a = 1"),
        ("1. So:\n\n   ```python\n   if a:\n       b()\n   ```\n", "if a:\n    b()"),
        ("```python\nprint(1)```", "print(1)"),
        (
            '```python\ndef f():\n    """Doc\n    ```\n    f()\n    ```\n    """\n```',
            'def f():\n    """Doc\n    ```\n    f()\n    ```\n    """',
        ),
        ('```python\n"""\n```\nf()\n```\n"""\nx = 1\n```\nSo.', '"""\n```\nf()\n```\n"""\nx = 1'),
        ("<answer>\nprint(1)\n</answer>", "\nprint(1)\n"),
        ("<answer>\n```python\nprint(1)\n```\n</answer>\nIt uses:\n```python\nx\n```", "print(1)"),
        ("[PYTHON]\nprint(1)\n[/PYTHON]", "\nprint(1)\n"),
        ("Sure, here it is:\n\nx = 1\nprint(x)\n\nIt prints x.", "x = 1\nprint(x)"),
        ("```python\nprint(1)\n<|endoftext|>", "print(1)"),
        ("```python\nprint(1)\n```<|im_end|>\n", "print(1)"),
        ("```python\nif x:\n\u00a0\u00a0print(1)\n```", "if x:\n  print(1)"),
        ("```python\nprint('a\u00a0b')\n```", "print('a\u00a0b')"),
        ("```Python3.10\nprint(1)\n```", "print(1)"),
        ("``` {.python .numberLines}\nprint(1)\n```", "print(1)"),
        ("The program is ```python print(1)```", "print(1)"),
        ("```cpp\nint x;\n```", None),
        ("```python\n\n```", None),
        ("print(1)", "print(1)"),
    ],
)
def test_extraction(text: str, code: str | None) -> None:
    assert extract_code(text, "python", "auto") == code


@pytest.mark.parametrize(
    ("blocks", "wanted", "code"),
    [
        (["def f(): return 1", "print(f())"], Wanted(("f",)), "def f(): return 1"),
        (["def f(): return 1", "def f(): return 2", "assert f() == 2"], Wanted(("f",)), "def f(): return 2"),
        (
            ["class Solution:\n    def f(self): pass", "Solution().f()"],
            Wanted(("f",)),
            "class Solution:\n    def f(self): pass",
        ),
        (["import math", "def f(): return math.pi"], Wanted(("f",)), "import math\ndef f(): return math.pi"),
        (["def g(): return 1", "def f(): return 2"], Wanted(("f", "g")), "def g(): return 1\ndef f(): return 2"),
        (["print(input())", "# input: 1\nprint(1)"], Wanted(input=True), "print(input())"),
        (
            ["def f(x): return x", "print(f(input()))", "print(f(3))"],
            Wanted(input=True),
            "def f(x): return x\nprint(f(input()))",
        ),
        (["def f():\n    print(input())", "f()"], Wanted(input=True), "def f():\n    print(input())\nf()"),
        (["print(1)", "print(2)"], Wanted(input=True), "print(2)"),
        (["    return 1", "print(1)"], Wanted(("f",)), "print(1)"),
    ],
)
def test_of_several_blocks_the_one_that_is_asked_for(blocks: list[str], wanted: Wanted, code: str) -> None:
    text = "So:\n" + "\n\nand\n\n".join(f"```python\n{block}\n```" for block in blocks)
    assert extract_code(text, "python", "auto", wanted) == code


def test_no_text_takes_long() -> None:
    hard = ["```\n" * 20000, "```python\n" * 3000, "```python\n" + "x = (\n" * 20000, "x = 1\n(" * 20000,
            "    ```\n" * 20000,
            "```python\nx```\n" * 3000, "<answer>" * 20000, "<|a|>" * 20000, "`" * 200000, " " * 200000]  # fmt: skip
    start = time.perf_counter()
    for text in hard:
        extract_code(text, "python", "auto", Wanted(("f",)))
    assert time.perf_counter() - start < 30


def test_extraction_modes_and_languages() -> None:
    assert extract_code("print(1)", "python", "fenced") is None
    assert extract_code("x ```python\n1\n```", "python", "whole") == "x ```python\n1\n```"
    assert extract_code("```c++\nint x;\n```\n```python\ny\n```", "cpp", "auto") == "int x;"
    two = "```cpp17\nint main() {\n}\n```\nTests:\n```cpp\nint y;\n```"
    assert extract_code(two, "cpp", "auto", Wanted(input=True)) == "int main() {\n}"


@pytest.mark.parametrize(
    ("checker", "actual", "expected", "agree"),
    [
        ("exact", b"a\n", "a\n", True),
        ("exact", b"a", "a\n", False),
        ("lines", b"a  \nb\n\n", "a\nb", True),
        ("lines", b"a\r\nb", "a\nb\n", True),
        ("lines", b"a\n\nb", "a\nb", False),
        ("lines", b" a", "a", False),
        ("lines", b"", "5", False),
        ("lines", b"5\n6", "5", False),
        ("lines", "é".encode(), "é", True),
        ("tokens", b"1  2\n3", "1 2 3", True),
        ("tokens", b"1 2", "1 2 3", False),
        ("tokens", b"1.0000001", "1.0", True),
        ("tokens", b"1.1", "1.0", False),
        ("tokens", b"1000001", "1000000", False),  # an integer admits no tolerance
        ("tokens", b"1.0", "1", True),
        ("tokens", b"2.000000 3", "2\n3", True),
        ("tokens", b"1.0000001", "1", False),
        ("tokens", b"\n 5\n", "5", True),
        ("tokens", b"nan", "1.0", False),
        ("tokens", b"1_0.0", "10.0", False),
        ("unordered_lines", b"b\na\na", "a\nb\na", True),
        ("unordered_lines", b"b\na", "a\nb\na", False),
    ],
)
def test_outputs(checker: str, actual: bytes, expected: str, agree: bool) -> None:
    assert outputs_agree(checker, actual, expected, 1e-6, 0.0) is agree


@pytest.mark.parametrize(
    ("actual", "expected", "agree"),
    [
        (2.0, 2, True), (2, 2.0, True), (True, 1, False), (1, True, False), (0, False, False), (None, None, True),
        ((1, 2), [1, 2], True), ([1, (2, 3)], [1, [2, 3]], True), ([1], [1, 2], False), ({1, 2}, [1, 2], False),
        ({1: "a"}, {"1": "a"}, True), ({"1": "a", 1: "a"}, {"1": "a"}, False), ({"a": [1]}, {"a": [2]}, False),
        ("5", 5, False), (b"a", "a", False), (math.nan, math.nan, True), (10**400, 1e308, False),
        (math.inf, 1e308, False),
        (1 + 1e-9, 1.0, True), (10**9 + 1, 10**9, False), (1j, 1, False),
    ],
)  # fmt: skip
def test_values(actual: object, expected: object, agree: bool) -> None:
    assert values_agree(actual, expected, 1e-6, 0.0) is agree
