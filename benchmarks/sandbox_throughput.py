"""Isolated test cases a second, beside a plain subprocess for each; and what a thousand programs leave behind.

Run `python benchmarks/sandbox_throughput.py` on a machine with nothing else to do. Each row: one tiny program per test
case (two integers in, their sum out), `--workers` callers at the same time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from rewards.sandbox import Job, Limits, Sandbox, SandboxError  # noqa: E402

PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
MISBEHAVING = (
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "while True: pass",
    "while True: print('x' * 9999)",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
)


def rate(run: Callable[[int], bytes], cases: int, workers: int) -> float:
    """Cases a second of `run(index)`, called by several threads, each answer checked."""

    def work(start: int) -> None:
        for index in range(start, cases, workers):
            if run(index) != b"%d\n" % (index + 7):
                raise SystemExit(f"case {index} gave a wrong answer")

    threads = [threading.Thread(target=work, args=(start,)) for start in range(workers)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return cases / (time.perf_counter() - begin)


def plain(index: int) -> bytes:
    """The yardstick: a fresh interpreter for each case, with no isolation at all."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM]
    return subprocess.run(command, input=b"%d 7\n" % index, capture_output=True, check=True).stdout


def sandboxed(level: str, cases: int, workers: int) -> float:
    """Cases a second of one sandbox for each worker."""
    sandboxes = [Sandbox(min_level=level, force_level=level) for _ in range(workers)]
    try:
        for sandbox in sandboxes:
            sandbox.report()
        return rate(
            lambda i: sandboxes[i % workers].run(Job({"mode": "script", "code": PROGRAM}, b"%d 7\n" % i)).stdout,
            cases,
            workers,
        )
    finally:
        for sandbox in sandboxes:
            sandbox.close()


def left_behind(count: int) -> dict[str, int]:
    """Run programs of which a tenth misbehave; how many processes, mounts, directories and groups there are more."""

    def traces() -> dict[str, int]:
        return {
            "processes": sum("sandbox.zygote" in _command(name) for name in os.listdir("/proc") if name.isdigit()),
            "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
            "directories": len(list(Path("/tmp").glob("rewards-sandbox-*"))),
            "control groups": len(list(Path("/sys/fs/cgroup").glob("**/rewards-sandbox-*"))),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    before = traces()
    limits = Limits(cpu_seconds=0.2, wall_seconds=1.0, memory_mb=128, output_bytes=1 << 18)
    with Sandbox(limits) as sandbox:
        for index in range(count):
            code = MISBEHAVING[index // 10 % len(MISBEHAVING)] if index % 10 == 0 else f"print({index})"
            result = sandbox.run(Job({"mode": "script", "code": code}))
            if index % 10 and result.stdout != b"%d\n" % index:
                raise SystemExit(f"program {index} gave a wrong answer: {result}")
    return {name: now - before[name] for name, now in traces().items()}


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--programs", type=int, default=1000)
    options = parser.parse_args()
    print(f"{options.workers} workers, load average {os.getloadavg()[0]:.1f}, user id {os.geteuid()}")
    print(f"{'plain subprocess':20} {rate(plain, options.cases, options.workers):8.0f} cases/s")
    for level in ("rlimit-only", "landlock", "full"):
        try:
            print(f"{level:20} {sandboxed(level, options.cases, options.workers):8.0f} cases/s")
        except SandboxError as error:
            print(f"{level:20} {error}")
    if options.programs:
        begin = time.perf_counter()
        print(f"{options.programs} programs, a tenth misbehaving: left behind {left_behind(options.programs)}", end="")
        print(f", {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
