"""10,000 random schedules over a scripted engine: no token lost, doubled, mislabelled or too old, no group forgotten.

    python benchmarks/random_schedules.py [--runs 10000] [--first 0]

Each run has a random schedule (synchronous, ahead, partial with and without budget, asynchronous with caches kept or
computed again; wait, drop, mask), random lengths, speeds and moments of interruption, and restarts from its state. The
tests play the first few hundred; what they check stands in tests/rollout/scripted.py. About 8 minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.helpers import make_tiny_model
from tests.rollout.scripted import make_renderer, play


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        renderer = make_renderer(make_tiny_model(Path(folder) / "model"))
        for seed in range(arguments.first, arguments.first + arguments.runs):
            try:
                play(seed, renderer)
            except BaseException:
                print(f"seed {seed}:")
                play(seed, renderer, print)
                raise
            if (done := seed - arguments.first + 1) % 500 == 0:
                print(f"{done} runs, no mistake, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
