"""ProgramVerifier: the judge's words, the three forms of tests, checkers, partial credit, other languages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from rewards import programs
from rewards.programs import ProgramVerifier
from rewards.sandbox import SandboxError
from rewards.verdict import BadReference, Outcome, Verdict, Verifier

ADD = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
SUMS = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "10 -4\n", "stdout": "6\n"}]
CALLS = {"fn": "add", "cases": [{"args": [2, 3], "expected": 5}, {"args": [-1, 1], "expected": 0}]}
SUM_PROGRAM = "a, b = map(int, input().split())\nprint(a + b)"


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProgramVerifier]:
    verifier = ProgramVerifier(cpu_seconds=1.0, memory_mb=256)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def partial() -> Iterator[ProgramVerifier]:
    verifier = ProgramVerifier(partial_credit=True, rel_tol=1e-6, checker="tokens")
    yield verifier
    verifier.close()


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is:\n```{language}\n{code}\n```\nDone."


def judge(verifier: ProgramVerifier, code: str, tests: Any, **reference: Any) -> str:
    return str(verifier.grade(fenced(code), {"tests": tests, **reference}).detail["judge"])


def test_it_is_a_verifier(verifier: ProgramVerifier) -> None:
    assert isinstance(verifier, Verifier)
    assert verifier.needs_seconds > 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "code", "tests"),
    [
        ("AC", "def add(a, b): return a + b", ADD),
        ("AC", "def add(a, b): return a + b", CALLS),
        ("AC", SUM_PROGRAM, SUMS),
        ("WA", "def add(a, b): return a - b", ADD),
        ("WA", "def add(a, b): return a - b", CALLS),
        ("WA", "print(5)", SUMS),
        ("RE", "def add(a, b): return a / 0", ADD),
        ("RE", "def add(a, b): raise SystemExit(0)", CALLS),
        ("RE", "print(5); 1 / 0", SUMS),
        ("RE", "def sub(a, b): return a - b", ADD),
        ("TLE", "while True: pass", ADD),
        ("TLE", "import time\ndef add(a, b): time.sleep(60)", CALLS),
        ("MLE", "x = []\nwhile True: x.append(bytearray(1 << 24))", SUMS),
        ("MLE", "def add(a, b): return bytearray(1 << 29)", CALLS),
        ("OLE", "while True: print('x' * 10000)", SUMS),
        ("OLE", "while True: print('x' * 10000)", ADD),
        ("CE", "def add(a, b: return a + b", ADD),
        ("CE", "print('", SUMS),
        ("CE", "def add(a, b): return a + b\0", CALLS),
    ],
)
def test_the_judges_words(verifier: ProgramVerifier, word: str, code: str, tests: Any) -> None:
    verdict = verifier.grade(fenced(code), {"tests": tests})
    assert verdict.detail["judge"] == word
    assert verdict.outcome is (Outcome.CORRECT if word == "AC" else Outcome.WRONG)
    assert verdict.score == (1.0 if word == "AC" else 0.0)


def test_no_code_is_no_answer(verifier: ProgramVerifier) -> None:
    for text in ("I do not know.", "", "<think>```python\nprint(5)\n```", "```text\nhello\n```"):
        verdict = verifier.grade(text, {"tests": SUMS})
        assert (verdict.outcome, verdict.score, verdict.detail["judge"]) == (Outcome.NO_ANSWER, 0.0, "CE")
    broken = verifier.grade("def add(a, b)\n    return a + b", {"tests": ADD})  # code without a fence that is no Python
    assert (broken.outcome, broken.detail["judge"]) == (Outcome.WRONG, "CE")


def test_human_eval_form_with_a_body_or_a_whole_function(verifier: ProgramVerifier) -> None:
    prompt = 'import math\n\ndef helper(x):\n    return x\n\ndef add(a, b):\n    """Add."""\n'
    tests = "def check(candidate):\n    assert math.fabs(candidate(2, 3) - helper(5)) < 1e-9\n"
    reference = {"tests": tests, "entry_point": "add", "prompt": prompt}
    for completion in ("    return a + b\n", fenced("    return a + b"), fenced("return a + b"),
                       fenced("def add(a, b):\n    return helper(a) + b")):  # fmt: skip
        assert verifier.grade(completion, reference).detail["judge"] == "AC"
    assert verifier.grade("    return a - b\n", reference).detail["judge"] == "WA"


@pytest.mark.slow
def test_asserts_reach_classes_generators_callbacks_and_changed_arguments(verifier: ProgramVerifier) -> None:
    code = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
def evens(n):
    yield from range(0, n, 2)
def sort(items): items.sort()
def apply(f, x): return f(f(x))
def fail(): raise KeyError('k')
LIMIT = 7
"""
    strong = """
assert list(evens(6)) == [0, 2, 4]
l = [3, 1, 2]
sort(l)
assert l == [1, 2, 3]
assert apply(lambda x: x * 3, 2) == 18
assert LIMIT == 7
try:
    fail()
    assert False
except KeyError:
    pass
for i in range(3):
    assert sum(evens(i)) == sum(range(0, i, 2)), "message"
"""
    verdict = verifier.grade(fenced(code), {"tests": strong})
    assert verdict.detail["judge"] == "AC", verdict
    assert "weak" not in verdict.detail
    weak = verifier.grade(fenced(code), {"tests": "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2"})
    assert weak.detail["judge"] == "AC"
    assert weak.detail["weak"] == ["attr of an object of the candidate's"]
    strict = ProgramVerifier(weak="refuse")
    assert strict.grade(fenced(code), {"tests": "s = Stack()\ns.push(1)\nassert s.pop() == 1"}).score == 0.0
    strict.close()


@pytest.mark.parametrize(
    "returned",
    [
        "class X:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    __hash__ = None",
        "class X(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__",
        "class X(list):\n    def __eq__(s, o): return True\n    __hash__ = None\n"
        "    def __contains__(s, o): return True",
        "class X:\n    def __bool__(s): return True\n    def __contains__(s, o): return True\n"
        "    def __iter__(s): return iter(())\n    def __sub__(s, o): return 0\n    __rsub__ = __sub__\n"
        "    def __lt__(s, o): return True\n    __gt__ = __le__ = __ge__ = __lt__\n"
        "    def __float__(s): return 5.0",
    ],
)
@pytest.mark.parametrize(
    "tests",
    ["assert add(2, 3) == 5", "assert 5 in add(2, 3)", "assert not add(2, 3) != 5", "assert abs(5 - add(2, 3)) < 1e-6",
     "assert add(2, 3) < 6", "assert add(2, 3) in [5]",
     {"fn": "add", "cases": [{"args": [2, 3], "expected": 5}]}],
)  # fmt: skip
def test_no_object_can_answer_for_itself(verifier: ProgramVerifier, returned: str, tests: Any) -> None:
    verdict = verifier.grade(fenced(f"{returned}\ndef add(a, b): return X()"), {"tests": tests})
    is_true = tests == "assert add(2, 3) < 6" and "X(int)" in returned  # its data are the integer 0
    assert verdict.detail["judge"] == "AC" if is_true else verdict.score == 0.0


def test_a_test_that_reaches_no_assert_is_no_pass(verifier: ProgramVerifier) -> None:
    assert judge(verifier, "def f(): return []", "for x in f():\n    assert x == 1") == "WA"


def test_tests_that_never_call_the_candidate_are_a_bad_reference(verifier: ProgramVerifier) -> None:
    with pytest.raises(BadReference, match="without calling the candidate"):
        judge(verifier, "def add(a, b): return 0", "def add(a, b): return a + b\nassert add(2, 3) == 5")


def test_expected_values_are_not_in_the_candidates_memory(verifier: ProgramVerifier) -> None:
    """The zygote hands tests on unread, so no later fork finds them in memory that it inherited."""
    code = """
import re
def f(a):
    found = set()
    for line in open('/proc/self/maps'):
        span, rights = line.split()[:2]
        if 'r' in rights and '[v' not in line:
            start, end = (int(x, 16) for x in span.split('-'))
            with open('/proc/self/mem', 'rb', 0) as memory:
                memory.seek(start)
                try:
                    found.update(re.findall(rb'7316[0-9]*', memory.read(end - start)))
                except OSError:
                    pass
    return max((int(x) for x in found), default=0)
"""
    needle = 73160000 + 4117
    for tests in (f"assert f(0) == {needle}", {"fn": "f", "cases": [{"args": [0], "expected": needle}]}) * 2:
        verdict = verifier.grade(fenced(code), {"tests": tests})
        assert verdict.detail["judge"] == "WA", verdict


def test_forged_answers_on_the_channel_do_not_pass(verifier: ProgramVerifier) -> None:
    forge = (
        "import json, os, struct\n"
        "def send(m):\n    d = json.dumps(m).encode()\n    os.write(3, struct.pack('<I', len(d)) + d)\n"
        "def add(a, b): return 0\n"
    )
    findings = {"kind": "findings", "completed": True, "passed": 2, "total": 2, "failed": [], "error": None, "weak": []}
    for message in (findings, {"kind": "value", "value": {"fraction": ["1", "0"]}}, {"kind": "value"}, [], 3,
                    {"kind": "value", "value": 5, "nonce": ""}, {"kind": "loaded"}, {"kind": []}):  # fmt: skip
        for tests in (ADD, CALLS):
            verdict = verifier.grade(fenced(f"{forge}send({message!r})"), {"tests": tests})
            assert verdict.outcome is Outcome.WRONG, (message, verdict)


@pytest.mark.slow
def test_partial_credit_counts_tests_and_asserts(partial: ProgramVerifier) -> None:
    assert partial.grade(fenced("def add(a, b): return 5"), {"tests": ADD}) == Verdict(
        0.5, Outcome.PARTIAL, {"judge": "WA", "passed": 1, "total": 2, "level": "full",
                               "message": "an assert does not hold"})  # fmt: skip
    verdict = partial.grade(fenced("def add(a, b): return 5 if a > 0 else 1 / 0"), {"tests": CALLS})
    assert (verdict.score, verdict.outcome, verdict.detail["judge"]) == (0.5, Outcome.PARTIAL, "RE")
    tests = "assert f(0) == 1\nassert f(1) == 2\nassert f(2) == 3\nassert f(3) == 0"
    verdict = partial.grade(fenced("def f(x): return [1, 2][x]"), {"tests": tests})
    assert (verdict.score, verdict.detail["judge"]) == (0.5, "WA")
    assert partial.grade(fenced("def f(x): return None"), {"tests": tests}).score == 0.0


def test_tolerance_applies_where_a_float_is_expected(partial: ProgramVerifier, verifier: ProgramVerifier) -> None:
    third = {"fn": "f", "cases": [{"args": [], "expected": 0.3333333333}]}
    assert judge(partial, "def f(): return 1 / 3", third) == "AC"
    assert judge(verifier, "def f(): return 1 / 3", third) == "WA"
    million = {"fn": "f", "cases": [{"args": [], "expected": 10**7}]}
    assert judge(partial, "def f(): return 10**7 + 1", million) == "WA"
    assert judge(partial, "print('0.33333333   x')", [{"stdin": "", "stdout": "0.3333333333\nx"}]) == "AC"


NUMPY = "import numpy as np\na, b = map(int, input().split())\nprint(np.array([a, b]).sum())"


@pytest.mark.slow
def test_libraries_are_those_listed() -> None:
    with_numpy = ProgramVerifier(libraries=["numpy"])
    assert judge(with_numpy, NUMPY, SUMS) == "AC"
    assert (
        judge(with_numpy, "def add(a, b): return a + b", "import numpy as np\nassert np.isclose(add(2, 3), 5)") == "AC"
    )
    assert judge(with_numpy, "import torch", SUMS) == "RE"
    with_numpy.close()
    without = ProgramVerifier(libraries=[])
    assert judge(without, NUMPY, SUMS) == "RE"
    with pytest.raises(BadReference, match=r"tests: they import 'numpy'.* list it in the verifier's 'libraries'"):
        without.check_reference({"tests": "import numpy as np\nassert np.isclose(add(2, 3), 5)"})
    without.check_reference(
        {"tests": "try:\n    import numpy\nexcept ImportError:\n    numpy = None\nassert add(2, 3) == 5"}
    )
    without.close()
    with pytest.raises(ValueError, match="libraries: 'no_such_library' is not installed here"):
        ProgramVerifier(libraries=["no_such_library"])


@pytest.mark.slow
def test_usual_names_need_no_import_and_are_no_answer(verifier: ProgramVerifier) -> None:
    assert judge(verifier, "@lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)",
                 {"fn": "f", "cases": [{"args": [30], "expected": 832040}]}) == "AC"  # fmt: skip
    assert judge(verifier, "def add(a: int, b: Optional[int]) -> List[int]: return a + b", ADD) == "AC"
    future = "from __future__ import annotations\na, b = map(int, input().split())\nprint(math.floor(a + b))"
    assert judge(verifier, future, SUMS) == "AC"
    assert judge(verifier, "def f(n): return 0 if n < 1 else 1 + f(n - 1)",
                 {"fn": "f", "cases": [{"args": [20000], "expected": 20000}]}) == "AC"  # fmt: skip
    # what the tests ask for must be the candidate's own
    assert judge(verifier, "x = 1", "assert gcd(4, 6) == 2") == "RE"
    assert judge(verifier, "x = 1", {"fn": "gcd", "cases": [{"args": [4, 6], "expected": 2}]}) == "RE"
    assert judge(verifier, "from math import gcd", "assert gcd(4, 6) == 2") == "AC"
    bare = ProgramVerifier(preamble="")
    assert judge(bare, "def add(a: List, b): return a + b", ADD) == "RE"
    bare.close()
    with pytest.raises(ValueError, match=r"preamble: .* is not Python"):
        ProgramVerifier(preamble="from math import")


def test_what_a_program_does_besides_its_function_is_not_judged(verifier: ProgramVerifier) -> None:
    driver = "def add(a, b): return a + b\nprint(add(*map(int, input().split())))"
    assert judge(verifier, driver, ADD) == "AC"
    assert judge(verifier, driver, CALLS) == "AC"
    assert judge(verifier, "n = int(input())\ndef add(a, b): return a + b", CALLS) == "RE"


def test_a_result_may_be_left_in_the_first_argument(verifier: ProgramVerifier) -> None:
    reverse = {"fn": "reverse", "cases": [{"args": [[1, 2, 3]], "expected": [3, 2, 1]}]}
    assert judge(verifier, "def reverse(x): x.reverse()", reverse) == "AC"
    assert judge(verifier, "def reverse(x): x.sort()", reverse) == "WA"
    nothing = {"fn": "f", "cases": [{"args": [[1]], "expected": None}]}
    assert judge(verifier, "def f(x): x.append(1)", nothing) == "AC"
    assert judge(verifier, "def f(x): return x", nothing) == "WA"


def test_a_users_checker_runs_apart_and_an_output_on_which_it_fails_is_wrong(partial: ProgramVerifier) -> None:
    pair = "def check(stdin, stdout, expected):\n    a, b = map(int, stdout.split())\n    return a * b == int(stdin)"
    tests = [{"stdin": "15", "stdout": ""}]
    assert judge(partial, "print(3, 5)", tests, checker=pair) == "AC"
    assert judge(partial, "print(3, 4)", tests, checker=pair) == "WA"
    half = "def check(stdin, stdout, expected): return 0.5"
    assert partial.grade(fenced("print(1)"), {"tests": tests, "checker": half}).score == 0.5
    unreadable = partial.grade(fenced("print('x')"), {"tests": tests, "checker": pair})
    assert (unreadable.score, unreadable.detail["judge"]) == (0.0, "WA")
    assert "the checker failed on the output: ValueError" in unreadable.detail["message"]
    assert judge(partial, "print(1)", tests, checker="def check(*texts): return 'yes'") == "WA"
    for broken in ("def check(*texts): return allowed", "def check(*texts):\n    import pands"):
        with pytest.raises(BadReference, match=r"checker: (it cannot run|they import 'pands')"):
            partial.grade(fenced("print(1)"), {"tests": tests, "checker": broken})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler on this machine")
def test_c_and_cpp(verifier: ProgramVerifier) -> None:
    cpp = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }"
    c = '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); return 0; }'

    def word(code: str, language: str) -> str:
        reference = {"tests": SUMS, "language": language}
        return str(verifier.grade(fenced(code, language), reference).detail["judge"])

    assert word(cpp, "cpp") == "AC"
    assert word(c, "c") == "AC"
    assert word(cpp.replace("int main() {", "#include <span>\nint main() { std::span<int> none;"), "cpp") == "AC"
    assert word(c.replace("a + b", "a - b"), "c") == "WA"
    assert word("int main() { return }", "c") == "CE"
    assert word("volatile char x[20000000] = {1};\n" + c, "c") == "AC"
    assert word('#include "main.c"\n' + c, "c") == "CE"  # endless, and so are its messages
    assert word("#include <stdlib.h>\nint main() { abort(); }", "c") == "RE"
    assert word("int main() { for (;;); }", "c") == "TLE"
    assert word("#include <vector>\nint main() { std::vector<char> v(1ul << 31); return v[5]; }", "cpp") == "MLE"


def test_a_missing_compiler_is_not_the_programs_fault(
    verifier: ProgramVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(programs._COMPILERS, "c", ("main.c", [["/usr/bin/no-such-compiler", "{source}"]]))
    verdict = verifier.grade(fenced("int main() { return 0; }", "c"), {"tests": SUMS, "language": "c"})
    assert (verdict.outcome, verdict.score) == (Outcome.ERROR, None)
    assert "no-such-compiler did not start" in verdict.detail["reason"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "an object with the key 'tests'"),
        ({"test": "assert f() == 1"}, "an object with the key 'tests'"),
        ({"tests": "assert f() == 1", "entrypoint": "f"}, "unknown key 'entrypoint' .* did you mean 'entry_point'"),
        ({"tests": "f() == 1"}, "no assert statement"),
        ({"tests": "assert f( == 1"}, "tests: not Python"),
        ({"tests": "def check(candidate):\n    assert candidate() == 1"}, "never call it"),
        ({"tests": "assert f() == 1", "entry_point": "f; x"}, "entry_point: 'f; x' is not a name"),
        ({"tests": []}, "an empty list"),
        ({"tests": [{"stdin": "1"}]}, "'stdin' and 'stdout'"),
        ({"tests": [{"stdin": "1", "stdout": " \n"}]}, "every expected output is empty"),
        ({"tests": {"fn": "f", "cases": []}}, "at least one case"),
        ({"tests": {"fn": "f", "cases": [{"args": 1, "expected": 1}]}}, "args must be a list"),
        ({"tests": 3}, "neither a string"),
        ({"tests": SUMS, "language": "cobol"}, "language: 'cobol' is not one of python, c, cpp"),
        ({"tests": ADD, "language": "c"}, "only"),
        ({"tests": SUMS, "checker": "def test(): pass"}, "checker: it must define check"),
    ],
)
def test_references_are_checked_with_key_value_and_rule(
    verifier: ProgramVerifier, reference: Any, message: str
) -> None:
    with pytest.raises(BadReference, match=message):
        verifier.check_reference(reference)


def test_options_are_checked_and_the_level_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="checker: 'fuzzy' is not one of"):
        ProgramVerifier(checker="fuzzy")
    with pytest.raises(ValueError, match="total_seconds"):
        ProgramVerifier(wall_seconds=10, total_seconds=5)
    with pytest.raises(SandboxError, match="does not offer the isolation level 'full'"):
        ProgramVerifier(force_level="landlock").warm_up()
    unjudged = ProgramVerifier(force_level="landlock").grade(fenced(SUM_PROGRAM), {"tests": SUMS})
    assert (unjudged.outcome, unjudged.score, unjudged.detail["judge"]) == (Outcome.ERROR, None, "IE")
