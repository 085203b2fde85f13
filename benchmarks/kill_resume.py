"""Kills a run with SIGKILL at random instants, resumes it each time, and compares it with one that was never killed.

    PYTHONPATH=. python benchmarks/kill_resume.py [--kills 50] [--processes 1] [--seed 0] [--schedule partial]

float32, CPU, the transformers engine, a tiny random model, graders in processes of their own, evaluations, a reference
model, a learning rate that changes, prioritised sampling with rest, refill, and partial rollouts, so that a checkpoint
holds unfinished completions and finished groups that were not trained yet. Each kill is one of three kinds, drawn at
random: after a random time; at the beginning of a random phase of a random step and a few milliseconds later; before a
random file operation inside the run's folder (between two files, within a checkpoint, behind a log line). When a run
has been finished before all kills were made, another one begins. Final weights, optimizer state, every line of
metrics.jsonl (times aside) and of rollouts.jsonl must be bit for bit those of the uninterrupted run. With two processes
(`accelerate launch`, gloo) a kill hits rank 0, rank 1, or all processes with their launcher. Under ``--schedule
asynchronous``, where the moment of an update decides what is sampled, no two runs are the same: there every step must
stand in the logs once, and every group that was drawn must be trained once, still be in the last checkpoint's buffer,
or have been counted as dropped. Prints one JSON line with what each kill hit; the exit status is 1 if anything is not
so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from rlvr.__main__ import main as rlvr
from rlvr.runlog.metrics import PHASES, StepClock
from rlvr.state.saver import Saver
from tests.helpers import make_tiny_model
from tests.runs import ROOT, Workspace, elsewhere

STEPS = 10


SCHEDULES: dict[str, dict[str, Any]] = {
    "partial": {"type": "partial", "tokens": 7, "oversample": 2.0, "max_staleness": 2},
    "ahead": {"type": "ahead"},
    "synchronous": {"type": "synchronous"},
    "asynchronous": {"type": "asynchronous", "oversample": 2.0, "max_staleness": 2},
}


def workspace(folder: Path, schedule: str) -> Workspace:
    """The recipe that is killed: everything that holds state is switched on."""
    work = Workspace(folder / "work", make_tiny_model(folder / "base"))
    work.write_problems([{"problem": f"What is {a}+1?", "answer": "aeiou"} for a in range(30, 34)], "eval.jsonl")
    work.recipe["run"] |= {"steps": STEPS, "save_every": 2, "eval_every": 3, "log_rollouts": True}
    work.recipe["problems"]["eval"] = [
        {"name": "held_out", "source": {"type": "jsonl", "path": "eval.jsonl"}, "samples": 2, "k": [1, 2]}
    ]
    work.recipe["problems"]["sampler"] = {"type": "prioritised", "rest": {"visits": 2}}
    work.recipe["rollout"] |= {"self_test": True, "max_new_tokens": 24, "schedule": SCHEDULES[schedule]}
    work.recipe["algorithm"] |= {
        "kl": {"type": "k3", "coefficient": 0.01}, "correction": {"type": "truncate"},
        "filter": {"type": "refill", "max_extra": 0.5},
    }  # fmt: skip
    work.recipe["learner"] |= {"schedule": {"type": "cosine", "warmup_steps": 2}, "micro_batch_tokens": 400}
    work.save_recipe()
    return work


# ------------------------------------------------------------------------------------------------------ the killed run


def die(whole_launch: bool, note: Path) -> None:
    """SIGKILL to this process, or to the launcher and everything below it; what was going on is noted before."""
    note.write_text(json.dumps(NOW))
    os.sync()
    if whole_launch:
        launcher = psutil.Process(os.getppid())
        for process in (launcher, *launcher.children(recursive=True)):
            if process.pid != os.getpid():
                process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


NOW: dict[str, Any] = {"phase": "start", "writing": False, "kind": ""}
"""What this process is doing."""


def arm(plan: dict[str, Any], folder: Path) -> None:
    """Prepare this process's death as `plan` says, and keep `NOW` up to date."""
    note, phases, files = folder / "killed", itertools.count(), itertools.count()
    real_phase, real_write = StepClock.phase, Saver._write
    NOW["kind"] = plan["kind"]

    @contextmanager
    def phase(clock: StepClock, name: str) -> Iterator[None]:
        before, NOW["phase"] = NOW["phase"], name
        if plan["kind"] == "phase" and next(phases) == plan["number"]:
            threading.Timer(plan["delay"], die, (plan["launch"], note)).start()
        with real_phase(clock, name):
            yield
        NOW["phase"] = before if before in PHASES else "between"

    def write(saver: Saver, *arguments: Any) -> str | None:
        NOW["writing"] = True
        try:
            return real_write(saver, *arguments)
        finally:
            NOW["writing"] = False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir", "os.truncate"):
            ours = any("runs/killed" in str(argument) for argument in arguments[:2])
            if ours and next(files) == plan["number"]:
                NOW["writing"] = NOW["writing"] or any("checkpoints" in str(one) for one in arguments[:2])
                die(plan["launch"], note)

    StepClock.phase, Saver._write = phase, write  # type: ignore[method-assign]  # only watched
    if plan["kind"] == "file":
        sys.addaudithook(audit)
    if plan["kind"] == "time":
        timer = threading.Timer(plan["delay"], die, (plan["launch"], note))
        timer.daemon = True
        timer.start()


def attempt(folder: Path, plan: dict[str, Any], processes: int, name: str) -> int:
    """Start (or go on with) the run and see it end or die; its exit status, negative for a signal."""
    if processes == 1:
        child = os.fork()  # everything is imported already: a start costs a second instead of ten
        if child == 0:
            quiet = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            arm(plan, folder)
            with elsewhere(folder):
                os._exit(rlvr(["train", "recipe.yaml", f"name={name}"]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with (folder / "output").open("a") as output:
        launched = subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu2.yaml"),
             str(Path(__file__).resolve()), "--child", json.dumps(plan), "--run", name],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
        family: set[psutil.Process] = set()
        while launched.poll() is None:
            family |= set(psutil.Process(launched.pid).children(recursive=True))
            time.sleep(0.1)
    psutil.wait_procs(list(family), timeout=120)
    return launched.returncode


def child(plan: dict[str, Any], name: str) -> int:
    """One rank under a launcher."""
    if plan["kind"] != "none" and int(os.environ["RANK"]) == plan["rank"]:
        arm(plan, Path.cwd())
    sys.path.insert(0, str(Path.cwd()))
    return rlvr(["train", "recipe.yaml", f"name={name}"])


# ---------------------------------------------------------------------------------------------------------- the killer


def draw(rng: random.Random, seconds: float, processes: int) -> dict[str, Any]:
    """How the next attempt ends."""
    kind = rng.choice(["time", "phase", "file"])
    return {
        "kind": kind,
        "number": rng.randrange(40) if kind == "phase" else rng.randrange(90),
        "delay": rng.uniform(0.0, seconds) if kind == "time" else rng.uniform(0.0, 0.05),
        "rank": rng.randrange(processes),
        "launch": processes > 1 and rng.random() < 0.5,
    }


def differences(work: Workspace, name: str) -> list[str]:
    """In what a run differs from the uninterrupted one."""
    found = []
    ours, theirs = work.weights(name), work.weights("whole")
    found += [f"weight {key}" for key in theirs if not torch.equal(ours[key], theirs[key])]
    states = [torch.load(work.results(one) / "checkpoints/latest/state.pt")["learner"] for one in (name, "whole")]
    moments = [{(i, k): v for i, e in s["state"]["optimizer"].items() for k, v in e.items()} for s in states]
    found += [f"optimizer {key}" for key in moments[1] if not torch.equal(moments[0][key], moments[1][key])]
    for what, one, other in (
        ("metrics", work.metrics(name), work.metrics("whole")),
        ("rollouts", work.rollouts(name), work.rollouts("whole")),
    ):
        if [line["step"] for line in one] != [line["step"] for line in other]:
            found.append(f"{what}: steps {[line['step'] for line in one]}")
        for mine, whole in zip(one, other, strict=False):
            keys = [key for key in {*mine, *whole} if mine.get(key) != whole.get(key)]
            found += [f"{what} of step {whole['step']}: {key}" for key in keys]
    return found


def unbalanced(work: Workspace, name: str) -> list[str]:
    """Where the accounts of an asynchronous run do not balance."""
    found = []
    lines, rollouts = work.metrics(name), work.rollouts(name)
    if [line["step"] for line in lines] != list(range(STEPS + 1)):
        found.append(f"metrics: steps {[line['step'] for line in lines]}")
    completions = [(one["problem_id"], one["visit"], one["sample"]) for one in rollouts]
    if len(set(completions)) != len(completions):
        found.append(f"{len(completions) - len(set(completions))} completions were logged twice")
    groups = {one[:2] for one in completions}
    if len(completions) != 4 * len(groups):
        found.append(f"{len(completions)} completions of {len(groups)} groups")
    state = torch.load(work.results(name) / "checkpoints/latest/state.pt")["rollouts"]["state"]
    left = {(one["problem"], one["visit"]) for one in state["groups"]}
    dropped = sum(line.get("buffer/dropped_stale", 0) for line in lines)
    if left & groups or state["drawn"] != len(groups) + len(left) + dropped:
        found.append(f"{state['drawn']} drawn, {len(groups)} trained, {len(left)} left, {dropped} dropped")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", choices=SCHEDULES, default="partial")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        return child(arguments.child, arguments.run)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kill_resume_") as place:
        return kill_and_compare(workspace(Path(place), arguments.schedule), arguments)


def kill_and_compare(work: Workspace, arguments: argparse.Namespace) -> int:
    rng, processes = random.Random(arguments.seed), arguments.processes
    began = time.monotonic()
    if attempt(work.folder, {"kind": "none"}, processes, "whole") != 0:
        print((work.folder / "output").read_text()[-3000:], file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    trained = sum(line.get("groups/trained", 0.0) for line in work.metrics("whole"))
    print(f"uninterrupted: {seconds:.0f} s, {trained:.0f} groups trained", file=sys.stderr, flush=True)
    kills: Counter[str] = Counter()
    bad: list[str] = []
    runs = 0
    while kills.total() < arguments.kills:
        name = f"killed{runs}"
        runs += 1
        done = False
        while not done:
            enough = kills.total() >= arguments.kills
            (work.folder / "killed").unlink(missing_ok=True)
            plan = {"kind": "none"} if enough else draw(rng, seconds, processes)
            status = attempt(work.folder, plan, processes, name)
            done = status == 0
            if not done and not (work.folder / "killed").exists():
                print((work.folder / "output").read_text()[-3000:], file=sys.stderr)
                bad.append(f"{name} ended with status {status} although nobody killed it")
                break
            if not done:
                now = json.loads((work.folder / "killed").read_text())
                kills[f"{now['kind']}: {now['phase']}" + (", a checkpoint half written" if now["writing"] else "")] += 1
                print(kills.total(), plan, now, file=sys.stderr, flush=True)
        if done:
            compare = unbalanced if arguments.schedule == "asynchronous" else differences
            bad += [f"{name}: {one}" for one in compare(work, name)]
    result = {
        "schedule": arguments.schedule, "processes": processes, "kills": kills.total(), "runs": runs, "steps": STEPS,
        "groups_trained": trained,
        "differences": bad[:20], "kills_by_place": dict(sorted(kills.items())),
    }  # fmt: skip
    print(json.dumps(result))
    return 1 if bad or not trained else 0


if __name__ == "__main__":
    sys.exit(main())
