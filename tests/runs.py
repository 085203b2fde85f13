"""Whole runs in a folder of their own: a tiny random model, problems, the user's plug-ins, and the `rlvr` command.

Nothing here stands in for a part of rlvr: runs go through `rlvr.__main__.main`, in this process or in a new one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from rlvr.__main__ import main
from rlvr.runlog.glossary import reproducible
from rlvr.runlog.run_log import read_metrics

ROOT = Path(__file__).parents[1]

GRADER = '''
from rewards import Outcome, Verdict


class EvenCount:
    """Right if an even number of the reference's letters stands in the completion: even a random model is now and
    then."""

    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        count = sum(completion.count(letter) for letter in reference)
        right = count % 2 == 0
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, {"count": count})
'''
"""A verifier as a user writes it, in a file of the current directory."""


class Workspace:
    """A directory from which runs are started, with everything that the recipe names in it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(model, folder / "model")
        self.write("grader.py", GRADER)
        self.write_problems([{"problem": f"What is {a}+{a}?", "answer": "aeiou 13579"} for a in range(10, 22)])
        self.recipe: dict[str, Any] = {
            "schema": 1,
            "name": "run",
            "run": {"steps": 4, "save_every": 2, "output": "runs", "threads": 1, "force": True},
            "model": {"path": "model"},
            "template": {"type": "none"},
            "problems": {"train": {"type": "jsonl", "path": "train.jsonl"}},
            "rewards": {"terms": [{"name": "even", "verifier": "grader:EvenCount"}]},
            "rollout": {
                "engine": {"type": "hf"}, "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 12,
                "self_test": False,
            },
            "algorithm": {"updates_per_batch": 2},
            "learner": {"lr": 1.0e-2, "epsilon": 1.0e-3},
        }  # fmt: skip

    def write(self, name: str, text: str) -> None:
        """A file of the user's."""
        (self.folder / name).write_text(text)

    def write_problems(self, rows: Sequence[Mapping[str, Any]], name: str = "train.jsonl") -> None:
        """A JSON-lines file."""
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def save_recipe(self) -> None:
        """Write the recipe as it is now."""
        self.write("recipe.yaml", yaml.safe_dump(self.recipe))

    def run(self, *overrides: str, command: str = "train") -> int:
        """`rlvr COMMAND recipe.yaml ...` in this process; its exit status."""
        self.save_recipe()
        with elsewhere(self.folder):
            return main([command, "recipe.yaml", *overrides])

    def start(self, *overrides: str, launcher: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        """`rlvr train recipe.yaml ...` in a process group of its own, by ``python -m`` or under a launcher."""
        self.save_recipe()
        command = [sys.executable, *(launcher or ["-m", "rlvr"]), "train", "recipe.yaml", *overrides]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            command, cwd=self.folder, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment,
        )  # fmt: skip

    def results(self, name: str = "run") -> Path:
        """The folder that a run writes."""
        return self.folder / "runs" / name

    def weights(self, name: str = "run", step: str = "latest") -> dict[str, Tensor]:
        """The policy in a checkpoint."""
        return load_file(self.results(name) / "checkpoints" / step / "model.safetensors")

    def metrics(self, name: str = "run") -> list[dict[str, Any]]:
        """Each step's numbers that two runs must have in common."""
        return [reproducible(line) for line in read_metrics(self.results(name))]

    def rollouts(self, name: str = "run") -> list[dict[str, Any]]:
        """The lines of ``rollouts.jsonl``, each of them whole, without times."""
        text = (self.results(name) / "rollouts.jsonl").read_text()
        assert not text or text.endswith("\n")
        return [{k: v for k, v in json.loads(line).items() if k != "grade_seconds"} for line in text.splitlines()]


LAUNCH = ("-m", "accelerate.commands.launch", "--config_file")


def launcher(config: str) -> list[str]:
    """``accelerate launch --config_file launch/CONFIG.yaml -m rlvr`` as this interpreter runs it."""
    return [*LAUNCH, str(ROOT / "launch" / f"{config}.yaml"), "-m", "rlvr"]


@contextmanager
def elsewhere(folder: Path) -> Iterator[None]:
    """Work in another directory, as a new process would: its modules are found, and forgotten afterwards."""
    here, path, threads, known = Path.cwd(), list(sys.path), torch.get_num_threads(), set(sys.modules)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = path
        torch.set_num_threads(threads)
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).parent == folder:
                del sys.modules[name]


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fails if the block leaves a child process or a thread of rlvr's."""

    def mine() -> set[Any]:
        threads = {one for one in threading.enumerate() if one.name.startswith(("rlvr", "grading"))}
        return threads | set(psutil.Process().children(recursive=True))

    before = mine()
    yield
    assert mine() <= before


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A process and all that descend from it."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Until a run has made a file; a run that ends before, or takes minutes, fails."""
    deadline = time.monotonic() + 180
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{file.name} did not appear: {process.communicate()}")
        time.sleep(0.05)


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal to the last bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_trained(metrics: Sequence[Mapping[str, float]]) -> None:
    """A theorem about equal runs says nothing if nothing was learned."""
    assert sum(line.get("groups/trained", 0.0) for line in metrics) > 0
    assert any(line.get("update/grad_norm", 0.0) > 0 for line in metrics)
