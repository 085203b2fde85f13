"""Lines of ``rollouts.jsonl`` written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def line(step: int = 1, group: int = 0, sample: int = 0, **changes: Any) -> dict[str, Any]:
    """One rollout; `changes` replace fields, and ``outcomes`` names the verdicts."""
    outcomes = changes.pop("outcomes", {"answer": "CORRECT"})
    record = {
        "step": step, "group": group, "sample": sample, "problem_id": f"p{group}", "visit": 0, "source": "here",
        "reference": f"r{group}", "prompt": "?", "text": "a completion", "reward": 1.0, "advantage": None,
        "verdicts": {name: {"score": 1.0, "outcome": one, "detail": {}} for name, one in outcomes.items()},
        "finish_reason": "stop", "tokens": 10, "versions": [[0, 10]], "loss_mask": [[1, 10]], "request_seed": 1,
        "grade_seconds": 0.0, "schema_version": 2,
    }  # fmt: skip
    return record | changes


def write(path: Path, records: Iterable[Mapping[str, Any]], *, mode: str = "wb") -> Path:
    """The file of these lines."""
    with path.open(mode) as file:
        file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
    return path
