"""Programs that try to pass without being right, to hurt, or to hang; beside honest programs that do unusual things."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from program_samples import HONEST, HOSTILE, as_another_user

from rewards.programs import ProgramVerifier
from rewards.sandbox import Job, Limits, Sandbox

DATA = Path(__file__).resolve().parents[1] / "data"
REPOSITORY = DATA.parents[1]
ATTACKS = [
    json.loads(line) for name in ("attacks", "attacks2") for line in (DATA / f"{name}.jsonl").read_text().splitlines()
]
HUMAN_EVAL = [json.loads(line) for line in (DATA / "humaneval.jsonl").read_text().splitlines()]
# what we refuse with an exception of the operating system ends the program where the label says that it goes on
_RAISED = {"proc_parent_mem": "RE", "deep_recursion_segv": "MLE"}
# the host's /dev/shm and / are no places of a program's below the full level
_SHARED = {"shm_mapping_survivor": "RE", "symlink_outputs": "RE"}
DIFFERENT = {"full": _RAISED, "landlock": _RAISED | _SHARED}

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


def attack_run(level: str, folder: Path, *options: str, abi: int | None = None, as_other: bool = False) -> list[Any]:
    """What `attack_run.py` prints, with the newest Landlock cut to `abi`, as another user if asked for."""
    package = REPOSITORY
    if abi is not None:
        package = folder / "older"
        shutil.copytree(REPOSITORY / "rewards", package / "rewards", ignore=shutil.ignore_patterns("__pycache__"))
        with open(package / "rewards" / "sandbox" / "landlock.py", "a") as file:
            file.write(f"\n\n_newest = abi\n\n\ndef abi() -> int:\n    return min(_newest(), {abi})\n")
    script, *files = (DATA.parent / "rewards" / "attack_run.py", DATA / "attacks.jsonl", DATA / "attacks2.jsonl")
    command = [sys.executable, "-B", str(script), level, *map(str, files), *options]
    if as_other:
        temporary = Path(tempfile.gettempdir())
        for path in takewhile(lambda path: path != temporary, (folder, *folder.parents)):  # pytest's, closed to others
            path.chmod(0o755)
        command = as_another_user(command)
    secrets = {"WANDB_API_KEY": "secret", "HF_TOKEN": "secret"}
    environment = {"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", **secrets}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong_of(lines: list[Any], level: str) -> list[Any]:
    """The lines that are not as they must be: verdict, the next program's verdict, and what the control got."""
    first, *rest = lines
    expected = {attack["name"]: attack for attack in ATTACKS}
    wrong = []
    for line in rest:
        attack = expected[line["name"]]
        want = DIFFERENT[level].get(line["name"], attack["expect"])
        good = line["judge"].removesuffix(" weak" if want == "AC" else "") == want
        good &= line["control"] == first["control"] and line["restarts"] == 0
        good &= "then" not in line or line["then"] == attack["then"]["expect"]
        wrong += [] if good else [line | {"want": want}]
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("as_other", [False, True])
def test_every_attack_gets_its_verdict_and_leaves_nothing_to_the_next(tmp_path: Path, as_other: bool) -> None:
    """A program that follows in the same jail gets the limits, priorities, processors and files that it had before."""
    lines = attack_run("full", tmp_path, as_other=as_other)
    assert len(lines) == 1 + len(ATTACKS)
    assert wrong_of(lines, "full") == []
    assert not os.path.exists("/tmp/pwned")


ON_THE_SANDBOX = (
    "deep_directories,keeper,kill_parent,socket,sched,sigqueue,pidfd,symlink,shm,prlimit,pickle,mem_bomb,correct"
)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "abi"), [("full", 5), ("full", 0), ("landlock", None), ("landlock", 5)])
def test_attacks_on_the_sandbox_fail_on_older_kernels_and_at_lower_levels(
    tmp_path: Path, level: str, abi: int | None
) -> None:
    """Linux 6.10 has no scopes of signals and sockets in Landlock (ABI 5); before 5.13 there is no Landlock at all."""
    with contextlib.ExitStack() as stack:
        for address in ("/tmp/rlvr-attack.sock", "\0rlvr-attack"):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            if os.path.lexists(address.replace("\0", "@")):
                os.unlink(address)
            server.bind(address)
            server.listen()
        os.chmod("/tmp/rlvr-attack.sock", 0o777)
        lines = attack_run(level, tmp_path, "--names", ON_THE_SANDBOX, abi=abi, as_other=True)
        os.unlink("/tmp/rlvr-attack.sock")
    assert len(lines) > 15
    assert wrong_of(lines, level) == []


VICTIM = """
import ctypes, fcntl, os, resource, signal, socket, struct
victim, libc = VICTIM, ctypes.CDLL(None)
info = ctypes.create_string_buffer(128)
struct.pack_into("iii", info, 0, 9, 0, -1)
attempts = [
    lambda: os.kill(victim, 9),
    lambda: libc.syscall(129, victim, 9, info),
    lambda: libc.syscall(297, victim, victim, 9, info),
    lambda: libc.syscall(424, libc.syscall(434, victim, 0), 9, None, 0),
    lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (0, 0)),
    lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (3, 3)),
    lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
    lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19),
    lambda: os.sched_setaffinity(victim, {0}),
    lambda: os.sched_setscheduler(victim, os.SCHED_IDLE, os.sched_param(0)),
    lambda: libc.syscall(251, 1, victim, 3 << 13),
]
def by_descriptor():
    a, b = socket.socketpair()
    fcntl.fcntl(a, fcntl.F_SETOWN, victim)
    fcntl.fcntl(a, fcntl.F_SETSIG, 9)
    fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)
    b.send(b"x")
def by_ioctl():
    a, b = socket.socketpair()
    fcntl.ioctl(a, 0x8901, struct.pack("i", victim))
    fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)
    b.send(b"x")
for attempt in [*attempts, by_descriptor, by_ioctl]:
    try: attempt()
    except OSError: pass
print("tried")
"""
VICTIMS_HOST = """
import os, resource, subprocess, sys, time
from rewards.sandbox import Job, Sandbox
victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def state():
    limits = [resource.prlimit(victim.pid, kind) for kind in range(16)]
    scheduling = os.sched_getaffinity(victim.pid), os.sched_getscheduler(victim.pid)
    return limits, scheduling, os.getpriority(os.PRIO_PROCESS, victim.pid), victim.poll()
before = state()
with Sandbox(min_level=sys.argv[1], force_level=sys.argv[1]) as sandbox:
    code = sys.stdin.read().replace("VICTIM", str(victim.pid))
    print(sandbox.run(Job({"mode": "script", "code": code})).stdout)
time.sleep(0.3)
print(state() == before)
victim.kill()
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["landlock", "rlimit-only"])
def test_a_process_of_the_same_user_cannot_be_touched_at_the_lower_levels(tmp_path: Path, level: str) -> None:
    command = as_another_user([sys.executable, "-c", VICTIMS_HOST, level])
    done = subprocess.run(
        command, input=VICTIM, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}, cwd="/"
    )
    assert done.stdout.splitlines() == ["b'tried\\n'", "True"], done


@pytest.mark.slow
@pytest.mark.parametrize(
    "ignore", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
               "ctypes.CDLL(None).sigaction(17, struct.pack('QQQQ', 0, 2, 0, 0).ljust(160, b'\\0'), None)", "pass"]
)  # fmt: skip
def test_children_that_nobody_waits_for_are_counted(verifier: ProgramVerifier, ignore: str) -> None:
    code = f"""
import ctypes, os, signal, struct, time
{ignore}
for _ in range(250):
    child = os.fork()
    if child == 0:
        end = time.process_time() + 0.02
        while time.process_time() < end: pass
        os._exit(0)
    try: os.waitpid(child, 0)
    except ChildProcessError: pass
print(sum(map(int, input().split())))
"""
    assert verifier.grade(fenced(code), {"tests": STREAMS}).detail["judge"] == "TLE"


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
