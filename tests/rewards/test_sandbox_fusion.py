"""ProgramVerifier on a SandboxFusion server: a real HTTP server that really runs the programs, in our own sandbox."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fusion_server import FusionServer

from rewards import sandbox_fusion
from rewards.pool import GradingPool, VerifierSpec
from rewards.programs import ProgramVerifier
from rewards.verdict import BadReference, Outcome

LARGE, MORE, THEIR_SUM = 700000000007, 111111111111, 811111111118
SUMS = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": f"{LARGE} {MORE}\n", "stdout": f"{THEIR_SUM}\n"}]
SUM_PROGRAM = "a, b = map(int, input().split())\nprint(a + b)"
CALLS = {
    "fn": "add",
    "cases": [{"args": [2, 3], "expected": 5}, {"args": [LARGE], "kwargs": {"b": MORE}, "expected": THEIR_SUM}],
}
ASSERTS = f"assert add(2, 3) == 5\nassert {THEIR_SUM} == add({LARGE}, b={MORE})"
LIAR = "class X(int):\n    def __eq__(s, o): return True\n    __hash__ = None\n"
FAULTS = ["status 500", "sandbox error", "no result", "no output", "no JSON", "cut", "silence"]
ADD = "def add(a, b): return a + b"


@pytest.fixture(scope="module")
def server() -> Iterator[FusionServer]:
    with FusionServer() as server:
        yield server


@pytest.fixture(scope="module")
def verifier(server: FusionServer) -> ProgramVerifier:
    return ProgramVerifier(back_end="sandbox_fusion", url=server.url, wall_seconds=10, memory_mb=256)


def judge(verifier: ProgramVerifier, code: str, tests: Any, **reference: Any) -> str:
    verdict = verifier.grade(f"```python\n{code}\n```", {"tests": tests, **reference})
    assert verdict.score == (1.0 if verdict.detail["judge"] == "AC" else 0.0)
    return str(verdict.detail["judge"])


@pytest.mark.parametrize(
    ("word", "code", "tests"),
    [
        ("AC", SUM_PROGRAM, SUMS),
        ("AC", ADD, CALLS),
        ("AC", ADD, ASSERTS),
        ("AC", "print('noise')\n" + ADD + "\nimport sys\nsys.stdout.write('more')", CALLS),
        ("AC", "class Solution:\n    def add(self, a, b): return a + b", CALLS),
        ("WA", "print(5)", SUMS),
        ("WA", "def add(a, b): return a - b", CALLS),
        ("WA", "def add(a, b): return 5", ASSERTS),
        ("WA", f"{LIAR}def add(a, b): return X(1)", CALLS),
        ("WA", "def add(a, b): return object()", CALLS),
        ("RE", "print(5); 1 / 0", SUMS),
        ("RE", "def add(a, b): return a / 0", CALLS),
        ("RE", "import os\nos._exit(0)", CALLS),
        ("RE", "import os\ndef add(a, b): os.write(1, b'5\\n'); os._exit(0)", ASSERTS),
        ("RE", "import os\ndef add(a, b):\n    for fd in range(3, 9):\n        try: os.write(fd, b'5\\n')\n"
               "        except OSError: pass\n    return a + b", CALLS),
        ("MLE", "x = bytearray(1 << 30)", SUMS),
        ("MLE", "def add(a, b): return bytearray(1 << 30)", CALLS),
        ("OLE", "print('x' * (1 << 20))", SUMS),
        ("OLE", "def add(a, b): return 'x' * (1 << 21)", CALLS),
        ("CE", "print('", SUMS),
        ("CE", "def add(a, b: return a + b", CALLS),
        ("CE", "def add(a, b): return '\ud800'", CALLS),
        ("CE", "print('\ud800')", SUMS),
    ],
)  # fmt: skip
def test_the_judges_words(verifier: ProgramVerifier, word: str, code: str, tests: Any) -> None:
    assert judge(verifier, code, tests) == word


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "tests"), [("while True: pass", SUMS), ("import time\ndef add(a, b): time.sleep(60)", CALLS)]
)
def test_what_does_not_end_in_time(server: FusionServer, code: str, tests: Any) -> None:
    impatient = ProgramVerifier(back_end="sandbox_fusion", url=server.url, wall_seconds=0.5)
    assert judge(impatient, code, tests) == "TLE"


def test_what_is_expected_never_leaves(server: FusionServer, verifier: ProgramVerifier) -> None:
    """Three forms of tests pass, and no request holds an expected value (which the inputs do not hold either)."""
    server.bodies.clear()
    for code, tests in ((SUM_PROGRAM, SUMS), (ADD, CALLS), (ADD, ASSERTS)):
        assert judge(verifier, code, tests) == "AC"
    assert len(server.bodies) == 6
    assert sum(str(LARGE) in body for body in server.bodies) == 3
    for body in server.bodies:
        assert str(THEIR_SUM) not in body


def test_human_eval_form_is_split_into_calls(verifier: ProgramVerifier) -> None:
    tests = (
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    'doc'\n    assert candidate(2, 3) == 5, 'message'\n"
        "    assert candidate((1,), (2,)) == (1, 2)\n"
    )
    reference = {"entry_point": "add", "prompt": 'def add(a, b):\n    """Add."""\n'}
    verifier.check_reference({"tests": tests, **reference})
    assert judge(verifier, "    return a + b", tests, **reference) == "AC"
    assert judge(verifier, "    return a - b", tests, **reference) == "WA"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler on this machine")
def test_cpp(verifier: ProgramVerifier) -> None:
    program = "#include <iostream>\nint main() { long long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }"
    for word, code in (("AC", program), ("WA", program.replace("a + b", "a - b")), ("CE", "int main() { return }")):
        verdict = verifier.grade(f"```cpp\n{code}\n```", {"tests": SUMS, "language": "cpp"})
        assert verdict.detail["judge"] == word, verdict


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_server_judges_nobody(server: FusionServer, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_fusion, "PATIENCE_SECONDS", 0.5)
    verifier = ProgramVerifier(back_end="sandbox_fusion", url=server.url, wall_seconds=1, total_seconds=1)
    verifier.warm_up()
    server.fail(fault)
    try:
        verdict = verifier.grade(SUM_PROGRAM, {"tests": SUMS})
    finally:
        server.heal()
    assert (verdict.outcome, verdict.score, verdict.detail["judge"]) == (Outcome.ERROR, None, "IE")
    assert server.url in verdict.detail["reason"] or "the server" in verdict.detail["reason"]


def test_a_server_that_stumbles_is_asked_again(server: FusionServer, verifier: ProgramVerifier) -> None:
    server.fail("status 500", times=1)
    assert judge(verifier, SUM_PROGRAM, SUMS) == "AC"
    assert server.faults_left == 0
    server.heal()


@pytest.mark.slow
def test_a_server_that_is_not_there_stops_the_pool_with_its_address() -> None:
    spec = VerifierSpec("rewards.programs:ProgramVerifier", {"back_end": "sandbox_fusion", "url": "http://127.0.0.1:9"})
    with pytest.raises(RuntimeError, match=r"the server at http://127.0.0.1:9 ran nothing: ConnectionRefusedError"):
        GradingPool({"x": spec})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"tests": "assert abs(add(1.0, 2) - 3) < 1e-6"}, r"line 1: 'assert abs\(add\(1.0, 2\) - 3\) < 1e-06' is no"),
        ({"tests": "x = add(1, 2)\nassert add(2, 3) == 5"}, "line 1: 'x = add"),
        ({"tests": "assert add(1, y) == 3"}, "is no 'assert f"),
        ({"tests": "assert add(1, 2)"}, "is no 'assert f"),
        ({"tests": SUMS, "language": "c"}, "runs python, cpp here, not 'c'"),
        (
            {"tests": SUMS, "checker": "def check(stdin, stdout, expected): return True"},
            "code that is shown the expected",
        ),
        ({"tests": [{"stdin": "\ud800", "stdout": "1"}]}, "lone surrogates"),
    ],
)
def test_what_would_show_what_is_expected_is_refused(
    verifier: ProgramVerifier, reference: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadReference, match=message):
        verifier.check_reference(reference)
    with pytest.raises(BadReference, match=message):
        verifier.grade(ADD, reference)


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match="back_end: 'fusion' is not one of 'any', 'own', 'bubblewrap', 'sandbox_fusion'"
    ):
        ProgramVerifier(back_end="fusion")
    with pytest.raises(ValueError, match="needs the server's address"):
        ProgramVerifier(back_end="sandbox_fusion")
    with pytest.raises(ValueError, match="is for back_end 'sandbox_fusion', not for 'any'"):
        ProgramVerifier(url="http://localhost:8080")
    with pytest.raises(ValueError, match="'localhost' is no address"):
        ProgramVerifier(back_end="sandbox_fusion", url="localhost")
    with pytest.raises(ValueError, match="min_level, force_level"):
        ProgramVerifier(back_end="sandbox_fusion", url="http://localhost:8080", min_level="landlock")


def test_where_there_is_no_linux_the_refusal_names_the_server_and_the_server_works(server: FusionServer) -> None:
    """A fresh interpreter without what Python has on Linux alone."""
    program = (
        "import fcntl, os, sys\n"
        "for name in [n for n in dir(fcntl) if 'SEAL' in n]: delattr(fcntl, name)\n"
        "for name in ('memfd_create', 'pidfd_open', 'MFD_CLOEXEC', 'unshare', 'sched_getaffinity'):\n"
        "    hasattr(os, name) and delattr(os, name)\n"
        "sys.platform = 'darwin'\n"
        "from rewards.programs import ProgramVerifier\n"
        f"sums = {{'tests': {SUMS!r}}}\n"
        f"print(ProgramVerifier().grade({SUM_PROGRAM!r}, sums).detail['reason'])\n"
        f"remote = ProgramVerifier(back_end='sandbox_fusion', url={server.url!r})\n"
        f"print(remote.grade({SUM_PROGRAM!r}, sums).detail)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refusal, judged = done.stdout.splitlines()
    assert "this is darwin" in refusal
    assert "back_end 'sandbox_fusion' with its address as 'url'" in refusal
    assert judged == "{'judge': 'AC', 'passed': 2.0, 'total': 2, 'level': 'remote'}"
