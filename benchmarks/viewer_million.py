"""A run of a million rollouts in the viewer: how long the first indexing takes, then opening, searching, and how much
a page holds.

    python benchmarks/viewer_million.py --rollouts 1000000 --folder /tmp/million

Texts are made of a vocabulary with a natural word-frequency (Zipf) so that the search meets common and rare words.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

GROUP, PROMPTS = 8, 32


def make_run(folder: Path, rollouts: int, words: int) -> None:
    """``rollouts.jsonl`` with `rollouts` lines of about `words` words, ``metrics.jsonl`` and ``recipe.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(50_000)]
    vocabulary[:8] = ["the", "is", "so", "we", "and", "equals", "then", "wait"]
    weights = list(accumulate(1 / (rank + 2) for rank in range(len(vocabulary))))
    sentences = [" ".join(draw.choices(vocabulary, cum_weights=weights, k=12)) for _ in range(200_000)]
    (folder / "recipe.yaml").write_text("name: million\nrun: {steps: 4000}\n")
    steps = rollouts // (GROUP * PROMPTS)
    with (folder / "rollouts.jsonl").open("w") as file, (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            right = 0
            for group in range(PROMPTS):
                problem, chance = draw.randrange(20_000), min(0.95, draw.random() * (0.5 + step / steps))
                for sample in range(GROUP):
                    correct = draw.random() < chance
                    right += correct
                    size = draw.randint(words // 24, words // 8)
                    final = problem if correct else draw.randrange(1000)
                    text = f"<think>{'. '.join(draw.choices(sentences, k=size))}</think> <answer>{final}</answer>"
                    file.write(json.dumps(_record(step, group, sample, problem, text, correct)) + "\n")
            metrics.write(json.dumps(_metrics(step, right / (GROUP * PROMPTS), draw)) + "\n")


def _record(step: int, group: int, sample: int, problem: int, text: str, correct: bool) -> dict[str, Any]:
    outcome = "CORRECT" if correct else "WRONG"
    tokens = len(text) // 4
    return {
        "step": step, "group": group, "sample": sample, "problem_id": f"made/{problem}", "visit": step // 600,
        "source": f"made:{problem}", "reference": str(problem), "prompt": f"What is the number of problem {problem}?",
        "text": text, "verdicts": {"accuracy": {"score": float(correct), "outcome": outcome, "detail": {}}},
        "reward": float(correct), "advantage": 0.5 if correct else -0.5,
        "finish_reason": "stop" if sample else "length", "tokens": tokens, "versions": [[step, tokens]],
        "loss_mask": [[1, tokens]], "request_seed": 1, "grade_seconds": 0.01, "schema_version": 1,
    }  # fmt: skip


def _metrics(step: int, reward: float, draw: random.Random) -> dict[str, float]:
    named = {"reward/mean": reward, "outcome/accuracy/correct": reward, "outcome/accuracy/wrong": 1 - reward,
             "rollouts/count": 256.0, "tokens/generated": 1e5, "time/step": 30.0, "time/generate": 20.0,
             "time/forward_backward": 9.0, "time/idle": 1.0, "policy/entropy": draw.random()}  # fmt: skip
    return {"step": step, **named}


def get(base: str, path: str, **parameters: Any) -> tuple[Any, float, int]:
    """A response of the server, the seconds it took and its bytes."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"{base}{path}?{urllib.parse.urlencode(parameters)}", timeout=600) as response:
        data = response.read()
    return json.loads(data), time.perf_counter() - began, len(data)


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The viewer on a run, and its address."""
    command = [sys.executable, "-u", "-m", "rlvr", "view", str(folder), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return process, line[line.index("http://") :].split()[0] + "api/"
    raise SystemExit("the viewer did not start")


@contextmanager
def viewer(folder: Path) -> Iterator[str]:
    """The address of a viewer's questions while it runs."""
    process, base = start(folder)
    try:
        yield base
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def index(folder: Path) -> None:
    """Let the viewer index the run, watching the progress that it shows."""
    began, cpu = time.perf_counter(), os.times()
    with viewer(folder) as base:
        while not (state := get(base, "state")[0]["data"][0])["level"]:
            print(f"  indexed {state['place'] / max(1, state['size']):.0%} after {time.perf_counter() - began:.0f} s")
            time.sleep(10)
    spent = os.times()
    processor = spent.children_user + spent.children_system - cpu.children_user - cpu.children_system
    size = sum(one.stat().st_size for one in folder.glob(".rollouts.index.sqlite*"))
    print(f"first indexing: {time.perf_counter() - began:.0f} s, {processor:.0f} s of processor, {size / 1e9:.2f} GB")


QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a common word", {"search": "the"}),
    ("a rare word", {"search": "RARE"}),
    ("two words", {"search": "the RARE"}),
    ("a phrase", {"search": '"so we"'}),
    ("a beginning", {"search": "wai*"}),
    ("no such word", {"search": "nosuchwordatall"}),
    ("a common word, newest first", {"search": "the", "order": "newest"}),
    ("a common word, filtered", {"search": "the", "outcome": "WRONG", "finish": "length", "tokens_max": 200}),
    ("a common word, filter that nothing fits", {"search": "the", "reward_min": 2}),
    ("filter alone", {"outcome": "CORRECT", "tokens_min": 700}),
    ("filter that nothing fits", {"reward_min": 2}),
)


def measure(folder: Path) -> None:
    """Index if need be; then open the viewer anew, ask what pages ask, and print seconds and kilobytes."""
    index(folder)
    began = time.perf_counter()
    with viewer(folder) as base:
        get(base, "state")
        step = get(base, "step")[0]["data"]
        first = step["groups"][0]
        spot = {"step": step["step"], "group": first["group"], "sample": first["samples"][0]["sample"]}
        text = get(base, "rollout", **spot)[0]["data"]["text"]
        print(f"open, from the command to the last step's first completion: {time.perf_counter() - began:.2f} s")
        rare = max(text.replace(".", " ").split("<")[1].split()[1:], key=len)
        for name, query in QUESTIONS:
            asked = {key: str(value).replace("RARE", rare) for key, value in query.items()}
            seconds = [get(base, "search", **asked) for _ in range(3)]
            count = f"{seconds[0][0]['data']['count']}{'' if seconds[0][0]['data']['counted'] else ' or more'}"
            print(f"search, {name}: first {seconds[0][1]:.3f} s, again {min(one[1] for one in seconds):.3f} s, "
                  f"{seconds[0][2] / 1e3:.0f} kB, found {count}")  # fmt: skip
        pages: tuple[tuple[str, dict[str, Any]], ...] = (
            ("overview", {}), ("step", {}), ("rollout", spot), ("problems", {}), ("solved", {}), ("suspects", {}),
            ("glossary", {}), ("series", {"keys": "reward/mean"}),
        )  # fmt: skip
        for name, query in pages:
            _, seconds_asked, size = get(base, name, **query)
            print(f"{name}: {seconds_asked:.3f} s, {size / 1e3:.0f} kB")


def main() -> None:
    """Make the run if it is not there, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=250)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/million"))
    parser.add_argument("--keep", action="store_true", help="leave the run and its index there")
    parser.add_argument("--make-only", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder
    if not (folder / "rollouts.jsonl").exists():
        make_run(folder, arguments.rollouts, arguments.words)
    if arguments.make_only:
        return
    size = (folder / "rollouts.jsonl").stat().st_size
    print(f"{arguments.rollouts} rollouts, {size / 1e9:.2f} GB")
    measure(folder)
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
