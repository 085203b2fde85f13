"""`rlvr train`: reinforcement learning, then the first and the last evaluation side by side."""

from __future__ import annotations

import argparse

from rlvr.config import Recipe
from rlvr.rollout.evaluate import comparison
from rlvr.run import loop
from rlvr.run.build import Run, build
from rlvr.run.versions import check_versions
from rlvr.runlog.plots import console_curve, draw_curve
from rlvr.runlog.run_log import read_metrics


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train, then show the first and the last evaluation side by side and the curve between them."""
    check_versions(recipe.rollout.engine.type)
    with build(recipe) as run:
        loop.train(run)
        if run.coordinator is not None:
            show_results(run)


def show_results(run: Run) -> None:
    """The table before and after, and the curve as PNG and on the console."""
    assert run.coordinator is not None
    lines = [one for one in read_metrics(run.folder) if any(key.startswith("eval/") for key in one)]
    sampled = [f"eval/{one.name}/pass@{one.k[0]}" for one in run.recipe.problems.eval]
    greedy = [f"eval/{one.name}/greedy" for one in run.recipe.problems.eval if one.greedy and one.temperature > 0.0]
    keys = [*sampled, *greedy]
    if len(lines) < 2 or not keys:
        return
    for one in run.recipe.problems.eval:  # where marks are partial, pass@k shows less than the reward does
        reward, right = f"eval/{one.name}/reward", f"eval/{one.name}/avg@{one.samples}"
        if any(abs(line[reward] - line[right]) > 1e-6 for line in lines if reward in line and right in line):
            keys.append(reward)
    log = run.coordinator.log
    log.show(comparison({f"step {line['step']}": line for line in (lines[0], lines[-1])}))
    log.show(console_curve(lines, keys))
    log.say(f"curve: {draw_curve({run.recipe.name: run.folder}, keys, run.folder / 'curve.png')}")
