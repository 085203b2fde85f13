"""The sandbox itself: what a program sees, what it may use, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from program_samples import as_another_user

from rewards.sandbox import CaseResult, Job, Level, Limits, Sandbox, SandboxError, case

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = Limits(cpu_seconds=1.0, wall_seconds=20.0, memory_mb=256)  # the machine may be busy


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("LD_LIBRARY_PATH", raising=False)  # an engine in this process sets it: see `new_places`
        with Sandbox(SHORT) as sandbox:
            yield sandbox


def script(sandbox: Sandbox, code: str, stdin: bytes = b"") -> CaseResult:
    return sandbox.run(Job({"mode": "script", "code": code}, stdin))


def processes_of(pid: int) -> set[str]:
    """Ids of a process and everything below it."""
    parents: dict[str, str] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[name] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    found = {str(pid)}
    while more := {name for name, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def gone(pids: set[str], within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_full_level_is_the_default_and_names_its_layers(sandbox: Sandbox) -> None:
    report = sandbox.report()
    assert report.level is Level.FULL
    assert report.layers["seccomp"] == "on"
    assert "pid" in report.layers["namespaces"].split()


def test_a_program_gets_its_input_and_its_output_and_status_come_back(sandbox: Sandbox) -> None:
    result = script(sandbox, "import sys\nprint(input()[::-1])\nprint('e', file=sys.stderr)\nsys.exit(7)", b"abc\n")
    assert (result.stdout, result.stderr, result.exit, result.killed) == (b"cba\n", b"e\n", 7, None)


def test_the_world_of_a_program_is_small(sandbox: Sandbox) -> None:
    code = """
import os, socket
print(sorted(n for n in os.listdir('/proc') if n.isdigit() and n != str(os.getpid())))
print(os.getuid(), sorted(os.listdir('/proc/self/fd')), os.listdir('.'), os.listdir('/tmp/code'))
print([p for p in ('/home', '/srv', '/var', '/sys', '/etc/passwd', '/run') if os.path.exists(p)])
print(sorted(os.environ), socket.gethostname())
print([l.split(':')[0].strip() for l in open('/proc/self/status') if l.startswith('NoNewPrivs:\\t1')])
print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm'))])
"""
    lines = script(sandbox, code).stdout.decode().splitlines()
    assert lines[0] == "[]"  # not even the keeper's process id
    assert lines[1] == "1000 ['0', '1', '2', '3'] [] ['solution.py']"  # 3 is the directory being listed
    assert lines[2] == "[]"
    assert lines[3].endswith("sandbox")
    assert not {"SSH_AUTH_SOCK", "USER", "PWD", "VIRTUAL_ENV"} & set(lines[3].split("'"))
    assert lines[4] == "['NoNewPrivs']"
    assert lines[5] == "['0000000000000000', '0000000000000000']"


def test_the_interpreter_is_found_where_its_path_on_the_host_says_nothing(sandbox: Sandbox) -> None:
    code = """
import inspect, json, os, subprocess, sys, xml.etree.ElementTree
again = subprocess.run([sys.executable, "-c", "import json, sys; print(sys.prefix)"], capture_output=True, text=True)
print(again.stdout.strip() == sys.prefix, os.path.exists(xml.__file__), "def dumps" in inspect.getsource(json.dumps))
print([path for path in sys.path if path.startswith(("/root", "/home"))], sys.prefix.startswith(("/usr", "/python")))
"""
    assert script(sandbox, code).stdout == b"True True True\n[] True\n"


def test_each_case_starts_with_an_empty_file_system(sandbox: Sandbox) -> None:
    write = "import os\nfor p in ('a', '/tmp/b', '/dev/shm/c'): open(p, 'w').write('x')\nprint('written')"
    look = "import os\nprint(os.listdir('.'), sorted(os.listdir('/tmp')), os.listdir('/dev/shm'))"
    assert script(sandbox, write).stdout == b"written\n"
    assert script(sandbox, look).stdout == b"[] ['code', 'home', 'shm'] []\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "killed"),
    [
        ("while True: pass", "cpu"),
        ("import time; time.sleep(60)", "wall"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "wall"),
        ("import os, time\nfor _ in range(6):\n  if os.fork() == 0:\n    while True: pass\ntime.sleep(60)", "cpu"),
        ("import os, time\nfor _ in range(9):\n  if not os.fork():\n    x = b'x' * (60 << 20)\n    time.sleep(60)\n"
         "time.sleep(60)", "memory"),
    ],
)  # fmt: skip
def test_limits_count_the_whole_tree(sandbox: Sandbox, code: str, killed: str) -> None:
    limits = replace(SHORT, wall_seconds=2.0) if killed == "wall" else SHORT
    assert sandbox.run(Job({"mode": "script", "code": code}), limits).killed == killed


def test_output_beyond_the_limit_ends_the_program() -> None:
    with Sandbox(Limits(output_bytes=10_000)) as sandbox:
        result = script(sandbox, "while True: print('x' * 1000)")
    assert (result.overflow, result.killed) == ("stdout", "caller")
    assert 10_000 <= len(result.stdout) < 200_000


def test_a_process_limit_holds_for_root_and_for_users(sandbox: Sandbox) -> None:
    code = "import os, time\nn = 0\ntry:\n  while n < 500:\n    if not os.fork(): time.sleep(60)\n    n += 1\n"
    result = script(sandbox, code + "except BlockingIOError: print(n)")
    assert int(result.stdout) == SHORT.processes - 1


def test_private_memory_is_capped(sandbox: Sandbox) -> None:
    result = script(sandbox, "try:\n  x = bytearray(300 << 20)\nexcept MemoryError:\n  print('refused')")
    assert result.stdout == b"refused\n"


def test_no_network_no_namespaces_no_kernel_keys(sandbox: Sandbox) -> None:
    code = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(f, *a):
    ctypes.set_errno(0)
    return f(*a) < 0 and ctypes.get_errno()
print([refused(libc.unshare, flag) for flag in (0x10000000, 0x20000, 0x40000000)])
print(refused(libc.mount, b'none', b'/tmp', b'tmpfs', 0, None), refused(libc.ptrace, 16, 1, 0, 0))
print(refused(libc.syscall, 435, 0, 0), refused(libc.syscall, 425, 1, 0), refused(libc.syscall, 9999))
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        socket.socket(family, socket.SOCK_DGRAM if family != socket.AF_NETLINK else socket.SOCK_RAW)
        print('open')
    except OSError as error:
        print(error.errno)
a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))
"""
    assert script(sandbox, code).stdout.decode().split("\n") == [
        "[1, 1, 1]", "1 1", "38 1 38", "1", "1", "1", "1", "b'x'", ""
    ]  # fmt: skip


@pytest.mark.slow
def test_a_dead_jail_is_replaced_and_the_program_still_judged() -> None:
    with Sandbox(SHORT) as sandbox:
        sandbox.report()
        guard = sandbox._lanes[0]._process.pid
        below = processes_of(guard)
        for pid in below - {str(guard)}:
            with contextlib.suppress(ProcessLookupError):  # it followed the one before it
                os.kill(int(pid), signal.SIGKILL)
        assert script(sandbox, "print(1)").stdout == b"1\n"
        assert sandbox.restarts == 1
        assert gone(below)


@pytest.mark.slow
def test_a_fork_of_the_caller_starts_a_jail_of_its_own() -> None:
    with Sandbox(SHORT) as sandbox:
        assert script(sandbox, "print(1)").stdout == b"1\n"
        child = os.fork()
        if child == 0:
            good = script(sandbox, "print(2)").stdout == b"2\n"
            sandbox.close()
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert script(sandbox, "print(3)").stdout == b"3\n"
        assert sandbox.restarts == 0


_WORKER = """
import sys
from rewards.sandbox import Job, Sandbox
sandbox = Sandbox(min_level=sys.argv[1], force_level=sys.argv[1])
sandbox.report()
print('up', flush=True)
sandbox.run(Job({'mode': 'script', 'code': '''
import os, time
for _ in range(3):
    if os.fork() == 0: os.setsid()
time.sleep(60)
'''}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["full", "landlock", "rlimit-only"])
def test_a_killed_caller_leaves_no_process_file_or_group(level: str) -> None:
    command = as_another_user([sys.executable, "-c", _WORKER, level])
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True, env={"PYTHONPATH": str(REPOSITORY)}, cwd="/"
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"up\n"
    deadline = time.monotonic() + 20
    while len(below := processes_of(worker.pid)) < 4 + 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(below) >= 4 + 8  # worker, guard, intermediate, zygote; eight programs
    guard = next(pid for pid in below if pid != str(worker.pid))
    scratch = [path for path in Path("/tmp").glob("rewards-sandbox-*") if str(path) not in guard]
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert gone(below - {str(worker.pid)})
    assert not [path for path in scratch if path.exists() and path.owner() == "nobody"]


def test_a_level_that_the_machine_lacks_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="this is darwin: use a machine with Linux"):
        Sandbox().report()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="min_level: 'strong' is not one of 'rlimit-only', 'landlock', 'full'"):
        Sandbox(min_level="strong")
    with pytest.raises(SandboxError, match="does not offer the isolation level 'full'"):
        Sandbox(min_level="full", force_level="rlimit-only").report()


@pytest.mark.parametrize("level", ["landlock", "rlimit-only"])
def test_lower_levels_leave_nothing_to_the_next_case_either(level: str) -> None:
    """Run where the interpreter is readable for everybody: at these levels root becomes another user first."""
    code = """
import os, sys
from rewards.sandbox import Job, Sandbox
hide = "import os; d = os.path.dirname(os.environ['HOME']); os.mkdir(d + '/../x', 0); open(d + '/../y', 'w').close()"
look = "import os; d = os.path.dirname(os.environ['HOME']); print(sorted(os.listdir(d)), os.listdir('.'))"
above = "import os; d = os.path.dirname(os.environ['HOME']); print([p for p in 'xy' if os.path.exists(d + '/../' + p)])"
with Sandbox(min_level=sys.argv[1], force_level=sys.argv[1]) as sandbox:
    for code in (hide, look, above):
        result = sandbox.run(Job({'mode': 'script', 'code': code}))
        print(result.stdout.decode() + result.stderr.decode(), end='')
"""
    command = as_another_user([sys.executable, "-c", code, level])
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}, cwd="/")
    assert done.stdout.splitlines() == ["['code', 'home', 'shm'] []", "[]"], done


def test_a_directory_is_emptied_however_deep_and_no_longer_than_allowed(tmp_path: Path) -> None:
    here = os.getcwd()
    (tmp_path / "wide" / "closed").mkdir(parents=True)
    (tmp_path / "wide" / "link").symlink_to("/usr")
    (tmp_path / "wide" / "closed").chmod(0)
    os.chdir(tmp_path)
    for _ in range(1500):  # its path is longer than a path may be
        os.mkdir("deep")
        os.chdir("deep")
    os.chdir(here)
    case.empty_directory(str(tmp_path), seconds=0.0)
    assert (tmp_path / "deep").exists()
    case.empty_directory(str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert os.path.exists("/usr/bin")


def test_bubblewrap_is_a_second_way_or_is_refused_by_name() -> None:
    with Sandbox(SHORT, back_end="bubblewrap") as sandbox:
        if shutil.which("bwrap") is None:
            with pytest.raises(SandboxError, match="no way to it by the back end 'bubblewrap'"):
                sandbox.report()
            return
        assert sandbox.report().layers["namespaces"].endswith("by bubblewrap")
        code = "import os\nprint(os.getuid(), os.listdir('.'))\nopen('/box/x', 'w').write('x')\nos.mkdir('/tmp/y', 0)"
        for _ in range(2):
            assert script(sandbox, code).stdout == b"1000 []\n"
        look = "import os\nprint(os.listdir('/box'), [p for p in ('/home', '/etc/passwd') if os.path.exists(p)])"
        assert script(sandbox, look).stdout == b"['tmp'] []\n"
        assert script(sandbox, "import os\nos.kill(1, 9)").exit == 1
        assert script(sandbox, "open('/proc/1/mem', 'rb')").exit == 1


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="memory_mb: 0 must be a number above 0"):
        Limits(memory_mb=0)
