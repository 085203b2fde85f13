"""Rollouts that were sampled before, played back through a recipe's own slot for workflows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.records import Completion, Rollout
from rlvr.rollout.collector import Piece, Session

FILE = "recording.json"
"""In the current directory: for each problem, visit and sample the pieces of its completion, in order."""


def piece(
    text: str, ids: Sequence[int], logprobs: Sequence[float] | None, finish_reason: str = "stop"
) -> dict[str, Any]:
    """A part of a recorded completion; without log-probabilities the policy did not sample it."""
    return {"text": text, "ids": list(ids), "logprobs": logprobs, "finish_reason": finish_reason}


def write_recording(folder: Path, completions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Completions by ``problem id/visit/sample index``."""
    (folder / FILE).write_text(json.dumps(completions))


async def replay(session: Session) -> list[Rollout]:
    """A workflow: the recorded completions, graded as if they had just been sampled."""
    recording = json.loads(Path(FILE).read_text())
    rollouts = []
    for index in range(session.group_size):
        pieces, last = [], None
        for part in recording[f"{session.problem.id}/{session.visit}/{index}"]:
            if part["logprobs"] is None:
                pieces.append(Piece(tuple(part["ids"]), is_model=False, text=part["text"]))
                continue
            last = Completion(
                ids=tuple(part["ids"]),
                behaviour_logprobs=tuple(part["logprobs"]),
                weight_version=(session.engine.version,) * len(part["ids"]),
                text=part["text"],
                finish_reason=part["finish_reason"],
            )
            pieces.append(Piece.sampled(last))
        assert last is not None
        rollouts.append(await session.finish(index, session.prompt.ids, pieces, last))
    return rollouts
