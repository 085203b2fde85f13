"""`rlvr doctor`: what stops or slows learning, in a recipe or in a run's folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rlvr.config import RecipeError, load_recipe, locate_recipe
from rlvr.doctor.recipe import examine as examine_recipe
from rlvr.doctor.report import Report, as_json, show
from rlvr.doctor.run import examine as examine_run
from rlvr.rules.preflight import worst_first
from rlvr.rules.preflight_data import RECIPE_UNSOUND
from rlvr.run.versions import check_versions
from rlvr.runlog.console import make_console


def run(arguments: argparse.Namespace) -> int:
    """Examine a recipe or a run and show what stops or slows learning; the exit status is 1 if anything stops it."""
    folder = Path(arguments.target)
    if folder.is_dir():
        if arguments.overrides:
            raise RecipeError(f"{arguments.overrides[0]!r}: a run's folder takes no overrides; name a recipe instead")
        report = Report(subject=str(folder), findings=worst_first(examine_run(folder)))
    else:
        report = _examined_recipe(arguments)
    if arguments.json:
        print(as_json(report))
    else:
        show(report, make_console())
    return report.status


def _examined_recipe(arguments: argparse.Namespace) -> Report:
    path = locate_recipe(arguments.target)
    try:
        recipe = load_recipe(path, arguments.overrides)
    except RecipeError as error:
        return Report(subject=arguments.target, findings=[RECIPE_UNSOUND.finding(str(error))])
    check_versions(recipe.rollout.engine.type)
    say: Callable[[str], None] = (lambda text: None) if arguments.json else print
    return examine_recipe(recipe, groups=arguments.groups, engine=not arguments.no_engine, say=say)
