"""The quickstart beside controls that must not show its effect: greedy accuracy on held-out problems before and after.

    PYTHONPATH=. python benchmarks/quickstart_control.py [--seeds 0,1,2] [--controls rewarded,coin,format] [--steps 100]

| run      | what is rewarded                                                          | greedy must           |
|----------|---------------------------------------------------------------------------|-----------------------|
| rewarded | right completions (the recipe as it is)                                       | rise to 0.9           |
| coin     | half of all texts, chosen by a hash: what they say makes no difference    | stay below 0.5        |
| format   | the recipe's format term alone: sampling gets surer, completions no better    | stay below 0.5        |

Each seed makes one base model, from which all its runs start. In the controls the completions are still judged, with
weight 0, so that the evaluation is the same. Prints one row a run; ends with status 1 where a run does not do what it
must.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from rewards import Outcome, Verdict
from rlvr.config import load_recipe
from rlvr.runlog.run_log import read_metrics

JUDGED = "rewards.terms.0.weight=0"
COIN = 'rewards.terms.1={name: coin, verifier: "benchmarks.quickstart_control:Coin", weight: 1.0}'
OVERRIDES = {"rewarded": [], "coin": [JUDGED, COIN], "format": [JUDGED, "rewards.terms.1.weight=1"]}
LEARNT, UNLEARNT = 0.9, 0.5
"""Greedy accuracy that the quickstart must reach, and that a control must not."""


class Coin:
    """1.0 or 0.0 by a hash of text and reference: no text is right by its content, and grading can be repeated."""

    lowest_score = 0.0

    def check_reference(self, reference: Any) -> None:
        """Every reference will do."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT with 1.0 or WRONG with 0.0, each for half of all texts."""
        heads = zlib.crc32(f"{reference}|{completion}".encode()) & 1
        return Verdict(1.0, Outcome.CORRECT) if heads else Verdict(0.0, Outcome.WRONG)


def measure(control: str, seed: int, steps: int, output: Path) -> bool:
    """One run; prints its row and returns whether it did what it must."""
    name = f"{control}-{seed}"
    command = [
        sys.executable, "-m", "rlvr", "train", "recipes/quickstart.yaml", f"name={name}", f"run.seed={seed}",
        f"run.steps={steps}", f"run.output={output}", "run.resume=never", f"model.path={output / f'base-{seed}'}",
        f"model.prepare={load_recipe('recipes/quickstart.yaml').model.prepare}", *OVERRIDES[control],
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [line for line in read_metrics(output / name) if "eval/held_out/greedy" in line]
    first, last = lines[0], lines[-1]
    shown = [f"{first[key]:.3f} -> {last[key]:.3f}" for key in ("eval/held_out/pass@1", "eval/held_out/greedy")]
    lengths = f"{first['eval/held_out/length']:.0f} -> {last['eval/held_out/length']:.0f}"
    print(f"{control:9} {seed:4}   {shown[0]:16} {shown[1]:16} {lengths}", flush=True)
    before, after = first["eval/held_out/greedy"], last["eval/held_out/greedy"]
    if control == "rewarded":
        return before <= UNLEARNT and min(after, last["eval/held_out/pass@1"]) >= LEARNT
    return after <= UNLEARNT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--controls", default=",".join(OVERRIDES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart_control"))
    arguments = parser.parse_args()
    print(f"{'run':9} seed   {'sampled':16} {'greedy':16} tokens a completion")
    kept = [
        measure(control, int(seed), arguments.steps, arguments.output)
        for seed in arguments.seeds.split(",")
        for control in arguments.controls.split(",")
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
