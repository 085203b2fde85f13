"""Programs that try to pass without being right, to hurt, or to hang; beside honest programs that do unusual things."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program_samples import HONEST, HOSTILE

from rewards.programs import ProgramVerifier
from rewards.sandbox import Job, Limits, Sandbox

DATA = Path(__file__).resolve().parents[1] / "data"
ATTACKS = [json.loads(line) for line in (DATA / "attacks.jsonl").read_text().splitlines()]
HUMAN_EVAL = [json.loads(line) for line in (DATA / "humaneval.jsonl").read_text().splitlines()]
# what we refuse with an exception of the operating system ends the program where the label says that it goes on
DIFFERENT = {"proc_parent_mem": "RE", "deep_recursion_segv": "MLE"}

ASSERTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
STREAMS = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "10 -4\n", "stdout": "6\n"}]


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProgramVerifier]:
    verifier = ProgramVerifier(cpu_seconds=1.0, memory_mb=256)
    yield verifier
    assert verifier._sandbox.restarts == 0  # no program reached the sandbox itself
    verifier.close()


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack["name"])
def test_recorded_attacks_get_their_verdicts(verifier: ProgramVerifier, attack: dict[str, Any]) -> None:
    before = set(os.listdir("/tmp"))
    detail = verifier.grade(fenced(attack["code"]), {"tests": attack["tests"]}).detail
    assert detail["judge"] == DIFFERENT.get(attack["name"], attack["expect"]), detail
    assert "weak" not in detail
    assert "pwned" not in set(os.listdir("/tmp")) - before


@pytest.mark.parametrize("name", HONEST)
def test_unusual_but_honest_programs_pass(name: str) -> None:
    # the clock must not decide here: CI's machine may stand still for seconds
    with_time = ProgramVerifier(memory_mb=256, wall_seconds=60.0, total_seconds=120.0)
    detail = with_time.grade(fenced(HONEST[name]), {"tests": STREAMS}).detail
    with_time.close()
    assert detail["judge"] == "AC", str(detail)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_harm_nobody(verifier: ProgramVerifier, name: str) -> None:
    verdict = verifier.grade(fenced(HOSTILE[name]), {"tests": ASSERTS})
    assert verdict.score == 0.0
    assert verdict.detail["judge"] in ("WA", "RE", "TLE", "MLE", "OLE", "CE"), verdict


@pytest.mark.slow
def test_a_thousand_programs_of_which_a_tenth_misbehave_leave_nothing() -> None:
    """No process, no mount, no directory, no control group and no descriptor more than before."""
    bad = ["import os\nwhile True: os.fork()", "x = []\nwhile True: x.append(bytearray(1 << 24))",
           "while True: pass", "while True: print('x' * 9999)",
           "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass"]  # fmt: skip
    limits = Limits(cpu_seconds=0.5, wall_seconds=5.0, memory_mb=128, output_bytes=1 << 18)

    def traces() -> dict[str, Any]:
        return {
            "mounts": Path("/proc/self/mounts").read_text(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "groups": sorted(Path("/sys/fs/cgroup").glob(f"**/rewards-sandbox-{os.getpid()}*")),
        }

    before = traces()
    with Sandbox(limits) as sandbox:
        sandbox.report()
        guard = sandbox._lanes[0]._process.pid
        count = int(os.environ.get("SANDBOX_PROGRAMS", "200"))  # the benchmark runs the thousand
        for index in range(count):
            code = bad[index // 10 % len(bad)] if index % 10 == 0 else f"print({index})"
            result = sandbox.run(Job({"mode": "script", "code": code}))
            if index % 10:
                assert result.stdout == b"%d\n" % index
        assert sandbox.restarts == 0
        below = [name for name in os.listdir("/proc") if name.isdigit() and _session(name) == guard]
        assert len(below) == 3  # guard, intermediate, zygote
    assert not [name for name in os.listdir("/proc") if name.isdigit() and _session(name) == guard]
    assert traces() == before


def _session(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return -1


def human_eval_reference(row: dict[str, Any]) -> dict[str, str]:
    return {"tests": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}


@pytest.mark.slow
def test_human_evals_canonical_solutions_are_all_accepted(verifier: ProgramVerifier) -> None:
    words = {}
    for row in HUMAN_EVAL:
        verdict = verifier.grade(row["canonical_solution"], human_eval_reference(row))
        words[row["task_id"]] = verdict.detail["judge"], verdict.detail.get("weak")
    assert len(words) == 164
    assert set(words.values()) == {("AC", None)}, {k: v for k, v in words.items() if v != ("AC", None)}


@pytest.mark.slow
def test_human_evals_solutions_with_a_wrong_return_are_all_refused(verifier: ProgramVerifier) -> None:
    wrong = ("None", "True", "[]", "-1")
    for index, row in enumerate(HUMAN_EVAL):
        name = row["entry_point"]
        patch = f"\n_right = {name}\ndef {name}(*a, **k):\n    _right(*a, **k)\n    return {wrong[index % 4]}\n"
        verdict = verifier.grade(fenced(row["prompt"] + row["canonical_solution"] + patch), human_eval_reference(row))
        assert verdict.score == 0.0, row["task_id"]
