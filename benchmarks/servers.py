"""The quickstart over two `vllm serve` servers and two learner processes, beside the same run in one process.

    python benchmarks/servers.py [--steps 10] [--faults] [--only in-process | servers | faults]

Starts `rlvr serve` twice, each on a port of its own, and trains over both by `accelerate launch` with two processes;
prints the reward of each step of both runs. With --faults a third run follows, in whose middle one server is killed
(SIGKILL) and started again by this script, as a supervisor would, and then the other is stopped (SIGSTOP) for longer
than the run's timeout and goes on (SIGCONT): no completion may be lost, and each returns with the current weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = "recipes/quickstart.yaml"
TIMEOUT = 30.0
"""Seconds of silence after which the run gives a server up; the stopped one is silent for twice as long."""


class Served:
    """One `rlvr serve`, which can be started again on its port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url, self._port, self._log = f"http://127.0.0.1:{port}", port, folder / f"server_{port}.log"
        self.start()

    def start(self) -> None:
        """A process of its own; it becomes `vllm serve`."""
        command = [sys.executable, "-m", "rlvr", "serve", RECIPE, "--port", str(self._port)]
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def tree(self) -> list[int]:
        """It and its engine core."""
        found, index = [self.process.pid], 0
        while index < len(found):
            tasks = Path(f"/proc/{found[index]}/task").glob("*/children")
            found += [int(one) for task in tasks for one in task.read_text().split()]
            index += 1
        return found

    def send(self, sent: signal.Signals) -> None:
        """A signal to it and its engine core."""
        for process in self.tree():
            os.kill(process, sent)

    def end(self) -> None:
        """Kill it and wait."""
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


def train(name: str, overrides: list[str], *, processes: int, folder: Path) -> subprocess.Popen[bytes]:
    """One run of the quickstart, started; by accelerate if it has several processes."""
    shutil.rmtree(folder / name, ignore_errors=True)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "launch/cpu2.yaml"] if processes == 2 else []
    fixed = [f"name={name}", f"run.output={folder}", "run.eval_every=1000", "run.save_every=1000"]
    command = [sys.executable, *launcher, "-m", "rlvr", "train", RECIPE, *fixed, *overrides]
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def lines_of(name: str, folder: Path) -> list[dict[str, float]]:
    """The metrics so far."""
    path = folder / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def wait_for_step(name: str, folder: Path, step: int, run: subprocess.Popen[bytes]) -> None:
    """Until that step is done, or the run has ended."""
    while run.poll() is None and not any(one["step"] >= step for one in lines_of(name, folder)):
        time.sleep(0.2)


def make_faults(run: subprocess.Popen[bytes], name: str, folder: Path, servers: list[Served]) -> None:
    """Kill one in a step, start it again; then stop the other for longer than the timeout."""
    wait_for_step(name, folder, 2, run)
    time.sleep(1.0)
    print(f"SIGKILL to {servers[0].url} after step {lines_of(name, folder)[-1]['step']}", flush=True)
    servers[0].process.kill()
    servers[0].process.wait()
    servers[0].start()
    while run.poll() is None and not any(one.get("warnings/server_returned") for one in lines_of(name, folder)):
        time.sleep(0.5)
    print(f"SIGSTOP to {servers[1].url} after step {lines_of(name, folder)[-1]['step']}", flush=True)
    servers[1].send(signal.SIGSTOP)
    time.sleep(2 * TIMEOUT)
    print(f"SIGCONT to {servers[1].url} after step {lines_of(name, folder)[-1]['step']}", flush=True)
    servers[1].send(signal.SIGCONT)


def report(name: str, folder: Path, started: float, run: subprocess.Popen[bytes]) -> list[float]:
    """Wait for a run's end, print its rewards, warnings and completions; its rewards."""
    status = run.wait()
    seconds = time.monotonic() - started
    lines = [one for one in lines_of(name, folder) if "reward/mean" in one]
    rewards = [one["reward/mean"] for one in lines]
    warnings = {key: value for key, value in lines[-1].items() if key.startswith("warnings/")} if lines else {}
    rollouts = folder / name / "rollouts.jsonl"
    completions = sum(1 for _ in rollouts.open()) if rollouts.is_file() else 0
    print(f"{name}: status {status}, {seconds:.0f} s, {completions} completions, {warnings}")
    print("  reward/mean " + " ".join(f"{one:.3f}" for one in rewards), flush=True)
    return rewards


def main() -> None:
    """Two or three runs, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fault-steps", type=int, default=40)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--only", choices=("in-process", "servers", "faults"))
    parser.add_argument("--ports", type=int, nargs=2, default=(8461, 8462))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "servers")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[float]] = {}
    if arguments.only in (None, "in-process"):
        started = time.monotonic()
        run = train("in-process", [f"run.steps={arguments.steps}"], processes=1, folder=folder)
        found["in-process"] = report("in-process", folder, started, run)
    if arguments.only == "in-process":
        return
    servers = [Served(folder, port) for port in arguments.ports]
    urls = ", ".join(one.url for one in servers)
    engine = f"rollout.engine={{type: vllm_servers, dtype: float32, urls: [{urls}], timeout: {TIMEOUT:g}}}"
    try:
        if arguments.only in (None, "servers"):
            started = time.monotonic()
            run = train("servers", [engine, f"run.steps={arguments.steps}"], processes=2, folder=folder)
            found["servers"] = report("servers", folder, started, run)
        if arguments.faults or arguments.only == "faults":
            started = time.monotonic()
            run = train("faults", [engine, f"run.steps={arguments.fault_steps}"], processes=2, folder=folder)
            make_faults(run, "faults", folder, servers)
            report("faults", folder, started, run)
    finally:
        for one in servers:
            one.end()
    if len(found) == 2:
        apart = [abs(a - b) for a, b in zip(found["in-process"], found["servers"], strict=True)]
        print(f"rewards apart: {max(apart):.3f} at most, {sum(apart) / len(apart):.3f} on average")


if __name__ == "__main__":
    main()
