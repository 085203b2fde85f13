"""Writes problems given as Python rows to the JSON-lines files that a recipe refers to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlvr.config import Recipe, RecipeError
from rlvr.config.problems import HubDataset, JsonLinesConfig
from rlvr.state.checkpoint import steps_in


def with_problems(
    data: dict[str, Any], recipe: Recipe, folder: Path, *,
    train: Iterable[Mapping[str, Any]] | None, evaluation: Any,
) -> None:  # fmt: skip
    """Write the rows to `folder` and name the files in `data`, the sections of `recipe`.

    Rows have the columns that the recipe's own source has, else ``problem`` and ``answer``; other columns become the
    problem's ``meta``. `evaluation` is rows, or a dict of rows by the eval set's name; sets of a name that the recipe
    has keep its settings, others have those of its first. Raises `RecipeError`.
    """
    section = data["problems"]
    source = recipe.problems.train
    columns = (
        {"prompt": source.prompt, "reference": source.reference, "reference_format": source.reference_format}
        if isinstance(source, JsonLinesConfig | HubDataset)
        else {}
    )
    if train is not None:
        path = write_rows(train, folder / "problems.jsonl", "problems")
        section["train"] = {"type": "jsonl", "path": str(path)} | columns
    if evaluation is not None:
        sets = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation} if len(evaluation) else {}
        known = {eval_set["name"]: eval_set for eval_set in section["eval"]}
        first = section["eval"][0] if section["eval"] else {}
        section["eval"] = []
        for name, rows in sets.items():
            path = write_rows(rows, folder / f"eval_{name}.jsonl", "eval_problems")
            source_of_set = {"type": "jsonl", "path": str(path)} | columns
            section["eval"].append(known.get(name, first) | {"name": name, "source": source_of_set})


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, argument: str) -> Path:
    """One line of JSON for each row, written by rank 0 alone. Raises `RecipeError` for what JSON does not hold, and
    where a run that has checkpoints was trained on other rows: it could not go on exactly."""
    lines = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RecipeError(f"{argument}[{number}] must be a dict of columns, got {type(row).__name__} {row!r:.80}")
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{argument}[{number}] cannot be written as JSON: {error}; got {row!r:.200}") from None
    if not lines:
        raise RecipeError(f"{argument} holds no row: there is nothing to train or measure on")
    content = "".join(lines).encode("utf-8", "surrogatepass")
    if int(os.environ.get("RANK", "0")) != 0 or (path.is_file() and path.read_bytes() == content):
        return path
    if path.is_file() and steps_in(path.parent / "checkpoints"):
        raise RecipeError(
            f"{argument}: {path.parent} holds checkpoints of a run on other rows (its {path.name} differs), so that it "
            "cannot go on with these; give the rows it began with, or start a new run under another name: "
            "overrides={'name': ...}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
