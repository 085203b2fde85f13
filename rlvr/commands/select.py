"""`rlvr select`: sampled completions become rows for `rlvr sft` and `rlvr dpo`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from rlvr.config import Recipe, RecipeError, no_such_file
from rlvr.config.select import Mix
from rlvr.problems.overlap import find_overlap
from rlvr.problems.rows import ProblemError
from rlvr.problems.select import Selected, read_sampled, select
from rlvr.problems.sources import load_problems
from rlvr.problems.templates import Renderer, load_tokenizer
from rlvr.runlog.console import make_console
from rlvr.runlog.jsonl import read_object
from rlvr.runlog.run_log import write_whole


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Write the rows and, beside them, ``FILE.report.json``: how many completions went where."""
    output: Path | None = arguments.output
    if output is None or not arguments.sources:
        raise RecipeError("--from and --output are missing: rlvr select RECIPE --from RUN --output rows.jsonl")
    if output.exists() and not arguments.force:
        raise RecipeError(f"--output: {output} exists already; choose another file, or add --force")
    sources = [source / "rollouts.jsonl" if source.is_dir() else source for source in arguments.sources]
    for source in sources:
        if not source.is_file():
            raise RecipeError(f"--from: {no_such_file(source)}")
    term = _term(recipe)
    mixed = [_drawn(mix, recipe.run.seed) for mix in recipe.select.mix]
    tokenizer = load_tokenizer(recipe.model.path)
    problems = load_problems(recipe.problems.train)
    by_id = {problem.id: problem for problem in problems}
    render = Renderer(recipe.template, tokenizer).render
    sampled = [
        read_sampled(record, place, by_id, render, recipe.select, term)
        for source in sources for place, record in _lines(source)
    ]  # fmt: skip
    evals = {eval_set.name: load_problems(eval_set.source) for eval_set in recipe.problems.eval}
    measured_on = {pair.train.id for pair in find_overlap(problems, evals).same}
    selected = select(
        (one for one in sampled if one.problem_id not in measured_on), problems, recipe.select, seed=recipe.run.seed,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False).input_ids),
    )  # fmt: skip
    selected.counts["left out: problem of an eval set"] = sum(one.problem_id in measured_on for one in sampled)
    counts = {name: count for name, count in selected.counts.items() if count}
    if not selected.rows:
        raise RecipeError(f"select: no row is left of {len(sampled)} completions: {_in_words(counts)}")
    rows = [*selected.rows, *(row for mix in mixed for row in mix)]
    if len(rows) > len(selected.rows):
        counts["rows of select.mix"] = len(rows) - len(selected.rows)
    tokens = sum(row["tokens"] for row in selected.rows)
    _write(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    report = {
        "sources": [str(source) for source in sources], "select": recipe.select.model_dump(mode="json"), "term": term,
        "counts": counts, "tokens": tokens,
    }  # fmt: skip
    _write(output.with_name(f"{output.name}.report.json"), json.dumps(report, indent=1) + "\n")
    _show(output, selected, counts, tokens)


def _term(recipe: Recipe) -> str:
    names = [term.name for term in recipe.rewards.terms]
    term = recipe.select.term or names[0]
    if term not in names:
        raise RecipeError(f"select.term: {term!r} is no reward term of the recipe; there are {', '.join(names)}")
    return term


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and object of each line; an unfinished last line, of a run that is writing, is left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            record = read_object(line)
            if record is None:
                raise ProblemError(f"{path}:{number}: no JSON object; the line is damaged, remove it")
            yield f"{path}:{number}", record


def _drawn(mix: Mix, seed: int) -> list[Mapping[str, Any]]:
    """The rows of another file: all, or so many drawn without replacement, in their own order."""
    path = Path(mix.path)
    if not path.is_file():
        raise RecipeError(f"select.mix: {no_such_file(path)}")
    rows = [row for _, row in _lines(path)]
    if mix.rows is None:
        return rows
    if mix.rows > len(rows):
        raise RecipeError(f"select.mix: rows must be at most {len(rows)}, what {path} holds, got {mix.rows}")
    return [rows[index] for index in sorted(random.Random(f"{seed}/{path}").sample(range(len(rows)), mix.rows))]


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise RecipeError(f"--output: {path} cannot be written: {error.strerror or error}") from error


def _show(output: Path, selected: Selected, counts: Mapping[str, int], tokens: int) -> None:
    table = Table(title=f"{output}", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count))
    table.add_row("mean tokens of a row", f"{tokens / len(selected.rows):.1f}")
    make_console().print(table)
