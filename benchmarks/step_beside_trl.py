"""One whole GRPO step beside TRL's, same model, same work, same machine, one after the other.

    make smollm2
    python benchmarks/step_beside_trl.py [--steps 6] [--repeats 1]

rlvr runs `benchmarks/trl_peer.yaml`; TRL runs `benchmarks/trl_step.py`, the same work, in a virtual environment of its
own (build/trl). Reported: median seconds a step without the first, samples a second, the peak resident memory of the
learner's process, and the peak of the sum over all its processes (PSS: shared pages count once). A shared machine is
not the same from one minute to the next: each run's line tells also which share of the processor the host took
meanwhile (steal), and how quick it was around the run, in TFLOP/s of products in bfloat16 and in GB/s of copying.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/smollm2-135m-instruct"
PEER = ROOT / "benchmarks/trl_step.py"
SAMPLES = 64


def watch_memory(process: subprocess.Popen[str], peaks: dict[str, float], every: float = 0.5) -> None:
    """Note the peaks of the main process's RSS and of the whole tree's PSS, in GB, until the process ends."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [root, *root.children(recursive=True)]
            pss = sum(one.memory_full_info().pss for one in family)
            peaks["pss_gb"] = max(peaks.get("pss_gb", 0.0), pss / 1e9)
            peaks["learner_rss_gb"] = max(peaks.get("learner_rss_gb", 0.0), root.memory_info().rss / 1e9)
        except psutil.NoSuchProcess:
            pass
        time.sleep(every)


def speeds() -> dict[str, float]:
    """What the machine does now: TFLOP/s of products of 2048 x 2048 in bfloat16, and GB/s of copying 256 MB."""
    a, b = torch.randn(2048, 2048).to(torch.bfloat16), torch.randn(64 * 2**20)
    c = torch.empty_like(b)

    def rate(work: Callable[[], object], amount: float, seconds: float = 1.0) -> float:
        work()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            work()
            count += 1
        return amount * count / (time.perf_counter() - start)

    return {
        "tflops": rate(lambda: a @ a, 2 * 2048**3 / 1e12),
        "copy_gbs": rate(lambda: c.copy_(b), 2 * 4 * len(b) / 1e9),
    }


def run(command: list[str]) -> tuple[str, dict[str, float]]:
    """Run to the end; its output, its memory peaks and what the machine was like."""
    first, before = speeds(), psutil.cpu_times()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks: dict[str, float] = {}
    watcher = threading.Thread(target=watch_memory, args=(process, peaks))
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{err[-3000:]}")
    after = psutil.cpu_times()
    stolen = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)  # Linux alone knows it
    last = speeds()
    machine = {key: (first[key] + last[key]) / 2 for key in first}
    return out, peaks | {"steal": stolen / (sum(after) - sum(before))} | machine


def ours(steps: int, *overrides: str) -> dict[str, float]:
    """A run of rlvr."""
    folder = ROOT / "build/bench"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "rlvr", "train", "benchmarks/trl_peer.yaml", f"run.steps={steps}"]
    _, found = run([*command, f"run.output={folder}", *overrides])
    lines = [json.loads(line) for line in (folder / "trl_peer/metrics.jsonl").read_text().splitlines()]
    settled = [line for line in lines if line["step"] > 1]
    seconds = statistics.median(line["time/step"] - line["time/checkpoint"] for line in settled)
    parts = {
        part: statistics.median(line[f"time/{part}"] for line in settled)
        for part in ("generate", "forward_backward", "optimizer", "sync")
    }
    assert all(line["samples/trained"] == SAMPLES for line in settled), "not all samples were trained"
    return {
        "seconds_per_step": seconds,
        "samples_per_second": SAMPLES / seconds,
        "mean_completion_tokens": statistics.mean(line["length/mean"] for line in settled),
        **found,
        "learner_rss_gb": max(found["learner_rss_gb"], lines[-1]["memory/peak"] * 2**30 / 1e9),
        **parts,
    }


def theirs(steps: int) -> dict[str, float]:
    """A run of TRL."""
    python = ROOT / "build/trl/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", ROOT / "build/trl"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", "trl==1.16.0"], check=True)
    out, found = run([str(python), str(PEER), str(MODEL), "--steps", str(steps)])
    summary = json.loads(out.strip().splitlines()[-1])
    return {
        "seconds_per_step": summary["seconds_per_step"],
        "samples_per_second": summary["samples_per_second"],
        "mean_completion_tokens": summary["mean_completion_tokens"],
        **found,
        "learner_rss_gb": max(found["learner_rss_gb"], summary["peak_rss_gb"]),
    }


def shown(name: str, figures: dict[str, float]) -> str:
    """A line of the table."""
    return f"{name:30} " + "  ".join(f"{key} {value:.2f}" for key, value in figures.items())


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    steps = arguments.steps
    master = ("model.dtype=float32", "model.autocast=bfloat16")
    kinds: dict[str, Callable[[], dict[str, float]]] = {
        "rlvr, bfloat16 weights": lambda: ours(steps),
        "TRL, bfloat16 weights": lambda: theirs(steps),
        "rlvr, float32 master weights": lambda: ours(steps, *master),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(arguments.repeats):
        for name, measure in kinds.items():
            rows[name].append(measure())
            print(shown(name, rows[name][-1]), flush=True)
    print("medians")
    for name, runs in rows.items():
        print(shown(name, {key: statistics.median(one[key] for one in runs) for key in runs[0]}))


if __name__ == "__main__":
    main()
