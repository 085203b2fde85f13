"""Tests that are code: nothing passes without values, and the tests that people write run as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rewards.programs import ProgramVerifier
from rewards.verdict import BadReference

MAPPED = "assert all(map(lambda case: add(*case[0]) == case[1], [((2, 3), 5), ((-1, 1), 0)]))"
OBJECT = "def add(a, b): return object()"
ITERATOR = "def add(a, b): return iter([a + b])"


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProgramVerifier]:
    verifier = ProgramVerifier(memory_mb=256)
    yield verifier
    verifier.close()


def judge(verifier: ProgramVerifier, code: str, tests: str, **reference: Any) -> dict[str, Any]:
    return verifier.grade(f"```python\n{code}\n```", {"tests": tests, **reference}).detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def add(a, b): raise StopIteration", MAPPED),
        ("class Own(StopIteration): pass\ndef add(a, b): raise Own", MAPPED),
        ("def add(a, b): raise StopIteration", "assert list(map(add, [2], [3])) == []"),
        ("def add(a, b): raise StopIteration", "assert [*iter(lambda: add(2, 3), 5)] == []"),
        ('import json, os, struct\ndef add(a, b):\n  m = json.dumps({"kind": "end"}).encode()\n'
         '  os.write(3, struct.pack("<I", len(m)) + m)\n  return 0', MAPPED),
        ("import os\ndef add(a, b): os._exit(0)", "try:\n    add(2, 3)\nexcept:\n    pass\nassert True"),
        ("def add(a, b): raise SystemExit", "try:\n    assert add(2, 3) == 5\nexcept BaseException:\n    assert 1"),
        ("def is_close(*a): return True\ndef add(a, b): return 0", "assert is_close(add(2, 3), 5)"),
        ("def is_close(*a): return True\ndef add(a, b): return 0", "got = add(2, 3)\nassert is_close(got, 5) is True"),
        ("def gap(*a): return -1\ndef add(a, b): return 0", "assert not gap(add(2, 3), 5) > 1e-6"),
        (OBJECT, "assert add(2, 3) != 6"),
        (OBJECT, "assert not add(2, 3) == 6"),
        (OBJECT, "assert not add(2, 3) != 6"),
        (OBJECT, "assert add(2, 3) not in [6, 7]"),
        (OBJECT, "assert not (add(2, 3) in [6, 7])"),
        (OBJECT, "assert [add(2, 3)] != [6]"),
        (OBJECT, "assert len({add(2, 3), add(3, 3)}) == 2"),
        (ITERATOR, "assert add(2, 3) == [5]"),
        (ITERATOR, "assert add(2, 3) != [6]"),
        ("import builtins\nbuiltins.all = builtins.len = lambda *a: 2\ndef add(a, b): return [0]", MAPPED),
    ],
)  # fmt: skip
def test_nothing_passes_without_the_right_values(verifier: ProgramVerifier, code: str, tests: str) -> None:
    assert judge(verifier, code, tests)["judge"] in ("RE", "WA")


NODE = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
"""
CHAINS = """
def chain(values):
    head = None
    for value in reversed(values): head = ListNode(value, head)
    return head
def values(head):
    found = []
    while head: found.append(head.val); head = head.next
    return found
"""
REVERSE = """
class Solution:
    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:
        before = None
        while head: head.next, before, head = before, head, head.next
        return before
"""
CONTROLS = [
    ("class Config:\n  x = 5", "assert Config.x == 5"),
    ("class Config:\n  x = 5", "from solution import Config\nassert Config.x == 5"),
    ("import enum\nclass Colour(enum.Enum):\n  RED = 1", "assert Colour.RED.value == 1"),
    ("gen = (i * i for i in range(4))", "assert list(gen) == [0, 1, 4, 9]"),
    ("items = [1, 2]", "assert len(items) == 2"),
    ("def add(a, b): return a + b", MAPPED),
    ("def add(a, b): return a + b", "assert add(2, 3) != 6\nassert add(2, 3) not in [6]\nassert add(2, 3) is not None"),
    ("class P:\n  def __init__(s, x): s.x = x\n  def __eq__(s, o): return s.x == o.x",
     "assert P(1) == P(1)\nassert P(1) != P(2)"),
    ("def encode(x): return x[::-1]\ndef decode(x): return x[::-1]", "assert decode(encode('ab')) == 'ab'"),
    ("class Node:\n  def __init__(s, v): s.v = v\ndef is_leaf(n): return True", "root = Node(1)\nassert is_leaf(root)"),
    ("def double(x): return 2 * x\ndef is_even(x): return x % 2 == 0",
     "assert is_even(double(3))\nassert not is_even(3)"),
    ("def f(x): return x * 2", "import solution\ndef test_f():\n    assert solution.f(2) == 4"),
    ("def f(x): return x * 2", "from solution import *\nclass TestF:\n    def setup_method(self): self.two = 2\n"
     "    def test_f(self):\n        assert f(self.two) == 4"),
    ("def f(x): return x / 3", "import pytest\nfrom solution import f\n\n"
     "@pytest.mark.parametrize('x, y', [(3, 1), (1, .33333333)])\n"
     "def test_f(x, y):\n    assert f(x) == pytest.approx(y)\n\n"
     "def test_g():\n    with pytest.raises(TypeError, match='unsupported'):\n"
     "        f(None)"),
    ("def f(x): return sorted(x)",
     "import pytest\n@pytest.fixture\ndef data():\n    yield [2, 1]\ndef test_f(data):\n    assert f(data) == [1, 2]"),
    ("def f(x): return type(x).__name__", "assert f(object()) == 'object'"),
    (NODE + "from typing import Optional" + REVERSE,
     f"{NODE}{CHAINS}\nassert values(Solution().reverse(chain([1, 2, 3]))) == [3, 2, 1]"),
    (NODE + "from typing import Optional" + REVERSE,
     f"{NODE}{CHAINS}\nassert values(Solution().reverse(chain(range(3000))))[0] == 2999"),
    ("def drop_first(head): head.val, head.next = head.next.val, head.next.next",
     f"{NODE}{CHAINS}\nhead = chain([1, 2, 3])\ndrop_first(head)\nassert values(head) == [2, 3]"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "tests"), CONTROLS)
def test_right_programs_pass(verifier: ProgramVerifier, code: str, tests: str) -> None:
    detail = judge(verifier, code, tests)
    assert detail["judge"] == "AC", detail


def test_wrong_programs_fail_tests_of_every_form(verifier: ProgramVerifier) -> None:
    in_functions = (
        "def test_a():\n    assert f(1) == 2\n\nclass TestB:\n    def test_b(self):\n        assert f(2) == 4\n"
    )
    assert judge(verifier, "def f(x): return 2", in_functions)["judge"] == "WA"
    raising = "import pytest\ndef test_a():\n    assert f(1) == 1\n    with pytest.raises(ValueError):\n        f(-1)\n"
    assert judge(verifier, "def f(x): return x", raising)["judge"] == "WA"
    wrong = f"{NODE}{CHAINS}\nassert values(Solution().reverse(chain([1, 2]))) == [2, 1]"
    assert judge(verifier, "class Solution:\n  def reverse(self, head): return head", wrong)["judge"] == "WA"


@pytest.mark.slow
def test_part_of_the_marks_for_test_functions() -> None:
    tests = "def test_a():\n    assert f(1) == 2\ndef test_b():\n    f(None)\n    assert f(2) == 4\n"
    with_parts = ProgramVerifier(memory_mb=256, partial_credit=True)
    assert with_parts.grade("```python\ndef f(x): return x * 2\n```", {"tests": tests}).score == 0.5
    with_parts.close()


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("import no_such_module\nassert f(1) == 1", "no_such_module"),
        ("def test_f(tmp_path):\n    assert f(tmp_path) == 1", "the fixture 'tmp_path'"),
        ('import re\nassert f(re.compile("")) == 1', "a test passes Pattern"),
        ("import re\ntry:\n    f(re.compile('1'))\nexcept:\n    pass\nassert f(1) == 1", "a test passes Pattern"),
    ],
)
def test_tests_that_cannot_run_are_no_answers_fault(verifier: ProgramVerifier, tests: str, why: str) -> None:
    with pytest.raises(BadReference, match=why):
        judge(verifier, "def f(x): return x", tests)
