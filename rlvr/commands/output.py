"""JSON-lines files that commands write when asked to (`--output`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlvr.config import RecipeError
from rlvr.problems.templates import Renderer
from rlvr.records import RolloutGroup
from rlvr.runlog.jsonl import JsonLines
from rlvr.runlog.run_log import rollout_record


def new_file(path: Path | None, flag: str) -> JsonLines | None:
    """The file that `flag` names, None without one. Raises `RecipeError` if it exists or cannot be written."""
    if path is None:
        return None
    if path.exists():
        raise RecipeError(f"{flag}: {path} exists already")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JsonLines(path)
    except OSError as error:
        raise RecipeError(f"{flag}: {path} cannot be written: {error.strerror}") from error


def write_rollouts(
    output: JsonLines | None, groups: Sequence[RolloutGroup], renderer: Renderer, before: int = 0
) -> None:
    """Append each rollout of the groups, the first of which is problem number `before`; nothing without a file."""
    if output is not None:
        output.append(
            rollout_record(0, index, group, rollout, renderer.render(group.problem).text, None)
            for index, group in enumerate(groups, before)
            for rollout in [*group.rollouts, *([group.greedy] if group.greedy else [])]
        )
