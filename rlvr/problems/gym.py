"""Problems from the package reasoning-gym (extra ``[gym]``), graded by its own scorers.

They are generated in a separate process with a fixed hash seed: some of its data sets iterate over sets of strings, so
the same seed would give other questions in each interpreter, and a resumed run would train on other data.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from rlvr.config import nearest
from rlvr.config.problems import ReasoningGym
from rlvr.problems.keys import problem_key
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem

GENERATE = """
import json, sys
import numpy, reasoning_gym

def plain(value):
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple, set) else value

job, out, sys.stdout = json.load(sys.stdin), sys.stdout, sys.stderr
for entry in reasoning_gym.create_dataset(job["dataset"], size=job["size"], seed=job["seed"], **job["config"]):
    print(json.dumps(repr(plain(dict(entry)))), file=out)
"""


def generate_gym(source: ReasoningGym) -> list[Problem]:
    """`size` problems of a data set. Raises `ProblemError` if the package or the data set does not exist or refuses.

    The reference is ``{"dataset", "config", "answer", "entry"}``: `entry` is the Python literal of the whole entry,
    because the scorers need its tuples and integer keys, which JSON would change.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ProblemError("reasoning_gym: the package is not installed: pip install 'rlvr[gym]'")
    if clash := {"size", "seed"} & set(source.config):
        raise ProblemError(f"reasoning_gym: config must not hold {sorted(clash)}: they are keys of the source itself")
    name = f"{source.dataset}/{source.seed}"
    problems = []
    for index, literal in enumerate(_entries(source)):
        entry: dict[str, Any] = _read(literal, source.dataset)
        reference = {
            "dataset": source.dataset,
            "config": source.config,
            "answer": entry["answer"] if entry["answer"] is None else str(entry["answer"]),
            "entry": literal,
        }
        problems.append(
            Problem(
                id=f"reasoning_gym/{name}/{index}",
                prompt=entry["question"],
                reference=reference,
                key=problem_key(entry["question"]),
                source=f"reasoning_gym/{name}:{index}",
            )
        )
    return problems


def _entries(source: ReasoningGym) -> list[str]:
    job = json.dumps({"dataset": source.dataset, "size": source.size, "seed": source.seed, "config": source.config})
    done = subprocess.run(
        [sys.executable, "-c", GENERATE],
        input=job,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if done.returncode != 0:
        from reasoning_gym.factory import DATASETS  # slow to import, and needed for nothing but this message

        if source.dataset not in DATASETS:
            near = nearest(source.dataset, DATASETS)
            raise ProblemError(f"reasoning_gym: there is no dataset {source.dataset!r}{near}")
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ProblemError(f"reasoning_gym: dataset {source.dataset!r} with config {source.config}: {reason}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _read(literal: str, dataset: str) -> dict[str, Any]:
    try:
        return dict(ast.literal_eval(literal))
    except (ValueError, SyntaxError):
        raise ProblemError(
            f"reasoning_gym: the entries of {dataset!r} hold objects that are no plain data: they cannot be scored "
            "in another process"
        ) from None
