"""`rlvr eval`: measure the model on the recipe's eval sets."""

from __future__ import annotations

import argparse

from rlvr.commands.output import new_file, write_rollouts
from rlvr.config import Recipe
from rlvr.rollout.evaluate import comparison
from rlvr.run.build import sampling_only
from rlvr.run.versions import check_versions
from rlvr.runlog.console import make_console


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Measure the recipe's model on its eval sets: pass@k, maj@k, avg@k with confidence intervals."""
    check_versions(recipe.rollout.engine.type)
    output = new_file(arguments.output, "--output")
    with sampling_only(recipe, train=False) as (rollouts, data):
        metrics: dict[str, float] = {}
        for eval_set, problems in data.eval_sets:
            print(f"measuring {eval_set.name}: {len(problems)} problems x {eval_set.samples}", flush=True)
            numbers, groups = rollouts.evaluate(eval_set, problems)
            metrics |= numbers
            write_rollouts(output, groups, data.renderer)
    make_console().print(comparison({recipe.model.path: metrics}))
