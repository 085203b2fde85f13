"""A finished run's results for Python: metrics, model path and rollouts, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlvr.state.checkpoint import steps_in


class RunResult:
    """Reads the folder of a run, one that has just ended or any other: ``RunResult("runs/quickstart")``.

    Raises `FileNotFoundError` where the folder holds no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        """Where the run keeps everything."""
        if not (self.folder / "metrics.jsonl").is_file():
            raise FileNotFoundError(f"{self.folder} is not the folder of a run: it holds no metrics.jsonl")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, in order, under the keys of docs/metrics.md and ``step``; where the run has eval sets the
        first is step 0, the evaluation before training."""
        lines = (self.folder / "metrics.jsonl").read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    @property
    def evaluation(self) -> dict[str, float]:
        """The ``eval/...`` metrics of the last step that measured any; empty where none did."""
        for line in reversed(self.metrics):
            if evaluation := {key: value for key, value in line.items() if key.startswith("eval/")}:
                return evaluation
        return {}

    @property
    def model_path(self) -> Path:
        """The model after the last saved step: a folder that ``from_pretrained`` and vLLM read. Raises
        `FileNotFoundError` before the first save."""
        checkpoints = steps_in(self.folder / "checkpoints")
        if not checkpoints:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint yet")
        return max(checkpoints)[1]

    @property
    def rollouts(self) -> Iterator[dict[str, Any]]:
        """The lines of ``rollouts.jsonl`` in order, one dict a completion, read as they are asked for; empty under
        ``run.log_rollouts: false``."""
        with (self.folder / "rollouts.jsonl").open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def __repr__(self) -> str:
        return f"RunResult({str(self.folder)!r})"
