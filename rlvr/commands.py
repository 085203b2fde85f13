"""What each command does with a recipe that is sound."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rlvr import loop
from rlvr.build import Run, build
from rlvr.config import Recipe, RecipeError
from rlvr.evaluate import comparison
from rlvr.plots import console_curve, draw_curve
from rlvr.run_log import read_metrics
from rlvr.versions import check_versions


def train(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train, then show the first and the last evaluation side by side and the curve between them."""
    check_versions(recipe.rollout.engine.type)
    with build(recipe) as run:
        loop.train(run)
        if run.zero is not None:
            show_results(run)


def show_results(run: Run) -> None:
    """The table before and after, and the curve as PNG and on the console."""
    assert run.zero is not None
    lines = [one for one in read_metrics(run.folder) if any(key.startswith("eval/") for key in one)]
    keys = [f"eval/{one.name}/pass@{one.k[0]}" for one in run.recipe.problems.eval]
    if len(lines) < 2 or not keys:
        return
    log = run.zero.log
    log.show(comparison({f"step {line['step']}": line for line in (lines[0], lines[-1])}))
    log.show(console_curve(lines, keys))
    picture = draw_curve({run.recipe.name: run.folder}, keys, run.folder / "curve.png")
    log.say(f"curve: {picture}")


COMMANDS: dict[str, Callable[[Recipe, argparse.Namespace], None]] = {"train": train}
