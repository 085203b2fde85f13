"""How long a run takes to go on: from the command to the first new step, beside the engine's own start.

    python benchmarks/resume_time.py [RECIPE] [--repeats 3] [section.key=value ...]

The recipe (the quickstart, without evaluations) runs one step and saves; then the same command with one step more is
timed in a fresh process, from before Python starts to the moment the new step begins to sample. One line of JSON: the
medians of the whole, of the engine's start in it (importing vLLM, starting its core), and of the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def child(began: float, out: Path, arguments: list[str]) -> int:
    """The command, timed from inside by watching two calls."""
    from rlvr.__main__ import main as rlvr
    from rlvr.engines.vllm.engine import VllmEngine
    from rlvr.runlog.metrics import StepClock

    real_start, real_phase = VllmEngine.start, StepClock.phase
    found: dict[str, float] = {}

    async def start(engine: VllmEngine) -> None:
        before = time.time()
        await real_start(engine)
        found["engine"] = time.time() - before

    def phase(clock: StepClock, name: str) -> AbstractContextManager[None]:
        if name == "generate" and "whole" not in found:
            found["whole"] = time.time() - began
            out.write_text(json.dumps(found))
        return real_phase(clock, name)

    watched: Any = (VllmEngine, StepClock)
    watched[0].start, watched[1].phase = start, phase
    return rlvr(arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/quickstart.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("BEGAN", "OUT"), help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.child is not None:
        began, out = arguments.child
        return child(float(began), Path(out), ["train", arguments.recipe, *overrides])
    results = []
    with tempfile.TemporaryDirectory(prefix="resume_time_") as place:
        common = [f"run.output={place}", "name=resumed", "problems.eval=[]", "run.eval_every=null", "run.save_every=1"]
        command = [sys.executable, __file__, arguments.recipe, *common, *overrides]
        for step in range(1, arguments.repeats + 2):
            out = Path(place) / "times.json"
            began = ["--child", str(time.time()), str(out)]
            subprocess.run(
                [*command, *began, f"run.steps={step}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            if step > 1:  # the first does not resume
                results.append(json.loads(out.read_text()))
    whole, engine = (statistics.median(one[key] for one in results) for key in ("whole", "engine"))
    above = statistics.median(one["whole"] - one["engine"] for one in results)
    print(json.dumps({"whole_s": round(whole, 1), "engine_s": round(engine, 1), "above_engine_s": round(above, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
