"""`rlvr train`: reinforcement learning; at the end, the first and last evaluation side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from rlvr.config import Recipe
from rlvr.rollout.evaluate import comparison
from rlvr.run import loop
from rlvr.run.build import build
from rlvr.run.versions import check_versions
from rlvr.runlog.console import Display, make_console
from rlvr.runlog.plots import console_curve, draw_curve
from rlvr.runlog.run_log import read_metrics, run_folder
from rlvr.state.checkpoint import steps_in
from rlvr.state.resume import NothingToDo


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train, then show what came of it."""
    train(recipe)


def train(recipe: Recipe) -> None:
    """Train, then show the first and the last evaluation, the curve between them and what can be done next; for a run
    that is finished already only the latter."""
    check_versions(recipe.rollout.engine.type)
    try:
        with build(recipe) as run:
            loop.train(run)
    except NothingToDo as reason:
        if PartialState().is_main_process:
            Display(make_console()).line(str(reason))
    folder = run_folder(recipe)
    if PartialState().is_main_process and folder.is_dir():  # it may have been asked to start from a finished run
        show_results(recipe, folder, Display(make_console()))


def show_results(recipe: Recipe, folder: Path, display: Display) -> None:
    """The table before and after, the curve as PNG and on the console, and the commands for what was trained."""
    lines = [line for line in read_metrics(folder) if any(key.startswith("eval/") for key in line)]
    sampled = [f"eval/{eval_set.name}/pass@{eval_set.k[0]}" for eval_set in recipe.problems.eval]
    greedy = [
        f"eval/{eval_set.name}/greedy"
        for eval_set in recipe.problems.eval
        if eval_set.greedy and eval_set.temperature > 0.0
    ]
    keys = [*sampled, *greedy]
    if len(lines) >= 2 and keys:
        for eval_set in recipe.problems.eval:  # where marks are partial, pass@k shows less than the reward does
            reward, right = f"eval/{eval_set.name}/reward", f"eval/{eval_set.name}/avg@{eval_set.samples}"
            if any(abs(line[reward] - line[right]) > 1e-6 for line in lines if reward in line and right in line):
                keys.append(reward)
        display.show(comparison({f"step {line['step']}": line for line in (lines[0], lines[-1])}))
        display.show(console_curve(lines, keys))
        display.line(f"curve: {draw_curve({recipe.name: folder}, keys, folder / 'curve.png')}")
    if saved := steps_in(folder / "checkpoints"):
        display.line(f"saved: {saved[0][1]}")
    display.line(f"next:  rlvr view {folder} shows the run, rlvr doctor {folder} looks for faults in it")
    if saved:
        measures = f"rlvr eval {folder} measures its model, " if recipe.problems.eval else ""
        display.line(f"       {measures}rlvr export {folder} FOLDER copies the model for other programs")
