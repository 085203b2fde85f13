"""`rlvr select` from the command line: a run's completions become rows that `rlvr sft` and `rlvr dpo` train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> Workspace:
    work = Workspace(tmp_path_factory.mktemp("select") / "work", tiny_tied)
    work.recipe["run"]["steps"] = 2
    work.write("short.jinja", "Q: {{ question }} A:")
    work.recipe["template"] = {"type": "jinja", "path": "short.jinja", "prefill": "<think>"}
    assert work.run() == 0
    return work


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_a_run_to_fine_tuning(work: Workspace) -> None:
    """Each row is a right completion of the run, without the prefill; `rlvr sft` and `rlvr dpo` take the files as they
    are; the same command writes the same bytes."""
    output = work.folder / "rows.jsonl"
    assert work.run("--from", "runs/run", "--output", "rows.jsonl", "select.keep=4", command="select") == 0
    right = {(line["problem_id"], line["text"]) for line in work.rollouts() if line["verdicts"]["even"]["score"] == 1.0}
    made = rows(output)
    assert made
    assert {(row["problem_id"], f"<think>{row['completion']}") for row in made} == right
    report = json.loads((work.folder / "rows.jsonl.report.json").read_text())
    assert report["counts"]["rows"] == len(made)
    assert report["counts"]["completions"] == len(work.rollouts()) == 32
    first = output.read_bytes()
    assert work.run("--from", "runs/run", "--output", "rows.jsonl", "select.keep=4", command="select") == 2  # is there
    assert work.run("--from", "runs/run", "--output", "rows.jsonl", "--force", "select.keep=4", command="select") == 0
    assert output.read_bytes() == first

    assert work.run("name=tuned", "sft={path: rows.jsonl, steps: 1, batch_size: 2}", command="sft") == 0
    pairs = ("--from", "runs/run/rollouts.jsonl", "--output", "pairs.jsonl", "select.rule=pairs")
    assert work.run(*pairs, command="select") == 0
    assert work.run("name=preferred", "dpo={path: pairs.jsonl, steps: 1, batch_size: 2}", command="dpo") == 0


def test_rows_of_another_file_are_mixed_in(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    work.write("general.jsonl", "".join(f'{{"prompt": "q{i}", "completion": "a{i}"}}\n' for i in range(9)))
    mix = "select.mix=[{path: general.jsonl, rows: 4}]"
    assert work.run("--from", "runs/run", "--output", "mixed.jsonl", mix, command="select") == 0
    mixed = [row for row in rows(work.folder / "mixed.jsonl") if "problem_id" not in row]
    assert len(mixed) == 4
    assert mixed == sorted(mixed, key=lambda row: row["prompt"])
    too_many = "select.mix=[{path: general.jsonl, rows: 10}]"
    assert work.run("--from", "runs/run", "--output", "none.jsonl", too_many, command="select") == 2
    assert "select.mix: rows must be at most 9, what general.jsonl holds, got 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "runs/ran"), "--from: 'runs/ran' does not exist"),
        (("--from", "runs/run", "select.term=style"), "select.term: 'style' is no reward term of the recipe"),
        (("--from", "runs/run", "select.right=[99, null]"), "select: no row is left of 32 completions: completions 32"),
        (("--from", "runs/run", "template.prefill=<b>"), "select with the template of that run, RUN/recipe.yaml"),
        (("--from", "damaged.jsonl"), "damaged.jsonl:2: no JSON object; the line is damaged, remove it"),
        (("--from", "runs/run", "select.right=[3, 1]"), "right must be [least, most], got [3, 1]; swap them"),
    ],
)  # fmt: skip
def test_what_cannot_be_selected_is_refused_and_nothing_written(
    work: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    line = (work.results() / "rollouts.jsonl").read_text().splitlines()[0]
    work.write("damaged.jsonl", f"{line}\n\0\0\0\n{line}\n")
    assert work.run(*arguments, "--output", "never.jsonl", command="select") == 2
    assert message in capsys.readouterr().err
    assert not list(work.folder.glob("*never.jsonl*"))
