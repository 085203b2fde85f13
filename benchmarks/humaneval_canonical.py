"""HumanEval's own solutions through `python -m rewards grade`: is each AC, and none once it returns the wrong thing?

Run by hand: `python benchmarks/humaneval_canonical.py humaneval.jsonl` (rows of the dataset: task_id, prompt,
entry_point, canonical_solution, test). The wrong program is the right one with a last part that replaces the function
by one that returns an object equal to nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
WRONG = """

class _Other:
    __hash__ = None
    def __eq__(self, other):
        return False


def {name}(*args, **options):
    return _Other()
"""


def rows(problems: list[dict[str, Any]], is_right: bool) -> list[dict[str, Any]]:
    """What `grade` reads: one completion in a code block for each problem, and its asserts."""
    made = []
    for problem in problems:
        code = problem["prompt"] + problem["canonical_solution"]
        if not is_right:
            code += WRONG.format(name=problem["entry_point"])
        tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
        made.append({"completion": f"```python\n{code}\n```", "reference": {"tests": tests}})
    return made


def grade(asked: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """The verdicts, in order; raises `CalledProcessError` when a line could not be graded."""
    command = [sys.executable, "-m", "rewards", "grade", "--verifier", "rewards.programs:ProgramVerifier"]
    done = subprocess.run(
        [*command, "--workers", str(workers)],
        input="".join(json.dumps(row) + "\n" for row in asked),
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(verdicts) == len(asked)
    return verdicts


def main() -> int:
    """Print the judges' words for both runs; 1 unless every right program is AC and no wrong one is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", type=Path, help="HumanEval as JSON lines")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    problems = [json.loads(line) for line in options.problems.read_text(encoding="utf-8").splitlines()]
    failed = False
    for is_right in (True, False):
        start = time.perf_counter()
        verdicts = grade(rows(problems, is_right), options.workers)
        words = Counter(verdict["detail"].get("judge", verdict["outcome"]) for verdict in verdicts)
        name = "canonical" if is_right else "wrong"
        print(f"{name}: {dict(words)} of {len(problems)} in {time.perf_counter() - start:.1f} s", flush=True)
        for problem, verdict in zip(problems, verdicts, strict=True):
            if (verdict["detail"].get("judge") == "AC") is not is_right:
                failed = True
                print(f"  {problem['task_id']}: {verdict['outcome']} {json.dumps(verdict['detail'])[:300]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
