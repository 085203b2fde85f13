"""Ten thousand gradings, a twentieth of which hang, crash or eat memory: is each verdict there, in order, and right?

Run `python benchmarks/grading_pool.py` on a machine with nothing else to do. A third of the work comes from the main
thread, a third from another thread, a third from an asyncio loop, all at once into one pool; `--ranks 2` does the same
in several processes that a launcher's variables call ranks, each with a pool of its own and its share of the work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from rewards import Outcome, Verdict  # noqa: E402
from rewards.math_answers import MathVerifier  # noqa: E402
from rewards.pool import GradingPool, VerifierSpec  # noqa: E402

TROUBLE = {
    "hang": Outcome.TIMEOUT,
    "spin": Outcome.TIMEOUT,
    "power": Outcome.TIMEOUT,
    "exit": Outcome.CRASHED,
    "abort": Outcome.CRASHED,
    "memory": Outcome.CRASHED,
}
WINDOW = 32
"""Gradings that each caller has under way at one time."""


class MathOrTrouble(MathVerifier):
    """Grades mathematics, and does to its process what a bad answer may do to it."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """Trouble by name, else the verdict on the answer."""
        match completion:
            case "hang":
                time.sleep(1000)
            case "spin":
                while True:
                    pass
            case "power":
                pow(7, 10**9)  # inside C, where no signal handler of Python runs
            case "exit":
                os._exit(3)
            case "abort":
                os.abort()
            case "memory":
                self.hoard = [bytes(64 << 20) for _ in range(10_000)]
        return super().grade(completion, reference)


def work(count: int) -> list[tuple[str, str, Outcome]]:
    """Completions, references and the outcomes they must have; each twentieth is trouble of some kind."""
    names, items = list(TROUBLE), []
    for index in range(count):
        if index % 20 == 10:
            name = names[index // 20 % len(names)]
            items.append((name, "1", TROUBLE[name]))
        elif index % 3:
            items.append((rf"so it is \boxed{{{index}}}", str(index), Outcome.CORRECT))
        else:
            items.append((rf"so it is \boxed{{\frac{{{index}}}{{7}}}}", str(index + 1), Outcome.WRONG))
    return items


class Caller:
    """Hands its share in, a window at a time; of each verdict it keeps the outcome, the delay and what is wrong."""

    def __init__(self, pool: GradingPool, items: list[tuple[str, str, Outcome]]) -> None:
        self.pool, self.items = pool, items
        self.outcomes: list[Outcome | None] = [None] * len(items)
        self.seconds = [0.0] * len(items)
        self.mistakes: list[str] = []
        self.done = 0

    def note(self, index: int, verdict: Verdict, start: float) -> None:
        """One verdict has come."""
        completion, _, wanted = self.items[index]
        self.done += 1
        self.outcomes[index], self.seconds[index] = verdict.outcome, time.perf_counter() - start
        is_judged = wanted in (Outcome.CORRECT, Outcome.WRONG)
        if verdict.outcome is not wanted or (is_judged and verdict.detail["answer"] not in completion):
            self.mistakes.append(f"{index}: {completion!r} {verdict.outcome}, not {wanted}; {dict(verdict.detail)}")

    def block(self) -> None:
        """From a thread."""
        room = threading.Semaphore(WINDOW)
        for index, (completion, reference, _) in enumerate(self.items):
            room.acquire()

            def done(future: Any, index: int = index, start: float = time.perf_counter()) -> None:
                self.note(index, future.result().verdict, start)
                room.release()

            self.pool.submit("math", completion, reference).add_done_callback(done)
        for _ in range(WINDOW):
            room.acquire()

    async def gather(self) -> None:
        """From an asyncio loop."""
        left = iter(enumerate(self.items))

        async def some() -> None:
            for index, (completion, reference, _) in left:
                start = time.perf_counter()
                self.note(index, await self.pool.grade("math", completion, reference), start)

        await asyncio.gather(*(some() for _ in range(WINDOW)))


def workers_of_this_process() -> list[psutil.Process]:
    """The pool's processes, the spare too."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if any("rewards.worker" in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended since
            continue
    return found


def memory() -> tuple[float, float]:
    """MiB of anonymous memory of this process and of its largest worker.

    Pages of files are left out: their share grows whenever a stranger ends that has mapped the same library.
    """
    return anonymous(os.getpid()), max([0.0, *(anonymous(worker.pid) for worker in workers_of_this_process())])


def anonymous(pid: int) -> float:
    """MiB of anonymous memory of a process; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 2**10


def report(callers: tuple[Caller, ...], pool: GradingPool, is_over: threading.Event) -> None:
    """Say every ten seconds how far it is, so that a slow machine is not taken for a pool that hangs."""
    start = time.perf_counter()
    while not is_over.wait(10.0):
        done, stats = sum(caller.done for caller in callers), pool.stats()
        print(
            f"{time.perf_counter() - start:5.0f} s: {done} of {sum(len(caller.items) for caller in callers)} graded, "
            f"{stats.timeouts} timeouts, {stats.crashes} crashes, {stats.errors} errors, {stats.respawns} respawns, "
            f"{sum(len(caller.mistakes) for caller in callers)} mistakes",
            file=sys.stderr,
            flush=True,
        )


def measure(count: int, workers: int, timeout: float) -> dict[str, Any]:
    """Run it all; the figures, `mistakes` and `left_over` (processes) among them."""
    items = work(count)
    begin = time.perf_counter()
    spec = VerifierSpec("grading_pool:MathOrTrouble", {"second_stage": False})  # sympy alone takes a second to import
    with GradingPool({"math": spec}, workers=workers, timeout=timeout, memory_mb=256) as pool:
        warm = Caller(pool, work(300)[:10] * 20)
        warm.block()
        before, start = memory(), time.perf_counter()
        main, thread, loop = (Caller(pool, items[share::3]) for share in range(3))
        is_over = threading.Event()
        reporter = threading.Thread(target=report, args=((main, thread, loop), pool, is_over))
        reporter.start()
        others = [threading.Thread(target=thread.block), threading.Thread(target=lambda: asyncio.run(loop.gather()))]
        for other in others:
            other.start()
        main.block()
        for other in others:
            other.join()
        is_over.set()
        reporter.join()
        seconds, after, stats = time.perf_counter() - start, memory(), pool.stats()
        at_work = workers_of_this_process()
    callers = (main, thread, loop)
    innocent = sorted(
        taken
        for caller in callers
        for taken, item in zip(caller.seconds, caller.items, strict=True)
        if item[0] not in TROUBLE
    )
    return {
        "gradings": count,
        "seconds": round(seconds, 1),
        "start_seconds": round(start - begin, 1),
        "outcomes": dict(Counter(str(outcome) for caller in callers for outcome in caller.outcomes)),
        "mistakes": [mistake for caller in callers for mistake in caller.mistakes],
        "respawns": stats.respawns,
        "retries": stats.retries,
        "processes": len(at_work),
        "left_over": sum(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in at_work),
        "parent_mib": [round(before[0], 1), round(after[0], 1)],
        "largest_worker_mib": [round(before[1], 1), round(after[1], 1)],
        "innocent_seconds": {
            "median": round(innocent[len(innocent) // 2], 4),
            "p99": round(innocent[len(innocent) * 99 // 100], 3),
            "worst": round(innocent[-1], 3),
        },
    }


def main() -> int:
    """Print the figures as JSON, one object for each rank; 1 if a verdict is missing or wrong, or a process left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gradings", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=0.5)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    if options.ranks > 1:
        command = [sys.executable, __file__, "--workers", str(options.workers), "--timeout", str(options.timeout),
                   "--gradings", str(options.gradings // options.ranks)]  # fmt: skip
        ranks = [
            subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(options.ranks)})
            for rank in range(options.ranks)
        ]
        return max(rank.wait() for rank in ranks)
    figures = measure(options.gradings, options.workers, options.timeout)
    print(json.dumps(figures, indent=1), flush=True)
    return 1 if figures["mistakes"] or figures["left_over"] or "None" in figures["outcomes"] else 0


if __name__ == "__main__":
    sys.exit(main())
