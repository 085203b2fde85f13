"""Train and evaluate from Python: a recipe, problems and rewards in, a `RunResult` or numbers out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.api.result import RunResult
from rlvr.api.rows import with_problems
from rlvr.api.terms import make_terms
from rlvr.commands.train import train as train_and_show
from rlvr.config import Recipe, RecipeError, load_recipe
from rlvr.run.build import sampling_only
from rlvr.run.versions import check_versions
from rlvr.runlog.run_log import run_folder

Rows = Iterable[Mapping[str, Any]]


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    problems: Rows | None = None,
    rewards: Sequence[Any] | None = None,
    eval_problems: Rows | Mapping[str, Rows] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> RunResult:
    """Train the recipe's model, as ``rlvr train`` does, and return its results.

    Args:
        recipe: what `rlvr.load_recipe` takes or returns.
        problems: rows such as ``{"problem": "What is 2+2?", "answer": "4"}``; None takes the recipe's own. The columns
            have the names that the recipe's ``problems.train`` gives them. They are written to ``problems.jsonl`` in
            the run's folder; a run that goes on from a checkpoint refuses other rows.
        rewards: functions ``f(completion, reference)`` that return a number, True or False, or a `rewards.Verdict` (the
            table is at `rewards.functions.FunctionVerifier`); verifier classes; import paths ``"module:name"``; short
            names such as ``"math"``; or dicts with one of these under ``verifier`` and the other keys of the recipe's
            ``rewards.terms``: ``{"verifier": f, "weight": 0.2, "args": {...}}``. None takes the recipe's own. Each runs
            in a process of its own that is killed where it hangs. Functions of a notebook or of the script itself
            travel there with the globals that they use; a run that goes on refuses a function whose code has changed.
            The first says whether an answer is right.
        eval_problems: rows as above, or a dict of rows by the eval set's name; an empty list measures nothing, None
            takes the recipe's own sets. Sampling is set as in the recipe's first eval set.
        overrides: changes of the recipe, as `rlvr.load_recipe` takes them.

    Where the run's folder (``run.output``/``name``) holds a checkpoint the run goes on from it, unless ``run.resume``
    says otherwise. Raises `rlvr.errors.InputError` for what cannot be run, `RlvrError` for what fails on the way.
    """
    recipe = load_recipe(recipe, overrides)
    recipe = _filled(recipe, run_folder(recipe), problems, rewards, eval_problems)
    train_and_show(recipe)
    return RunResult(run_folder(recipe))


def evaluate(
    target: str | Path | Mapping[str, Any] | Recipe | RunResult,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    problems: Rows | Mapping[str, Rows] | None = None,
    rewards: Sequence[Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> dict[str, float]:
    """Measure a model: ``eval/NAME/pass@1`` and the other keys of docs/metrics.md.

    Args:
        target: a recipe, whose model is measured; a run (its `RunResult` or folder), whose last checkpoint is measured
            under its own recipe; or, with `recipe`, a model's folder or name on the hub.
        recipe: by whose eval sets, template and rewards the target is measured.
        problems, rewards, overrides: as `train` has them; problems are what is measured on.

    Raises `RecipeError`, also where there is no eval set.
    """
    if isinstance(target, RunResult) or (isinstance(target, str | Path) and (Path(target) / "metrics.jsonl").is_file()):
        run = target if isinstance(target, RunResult) else RunResult(target)
        loaded = load_recipe(recipe if recipe is not None else run.folder / "recipe.yaml")
        loaded = load_recipe(loaded, {"model.path": str(run.model_path)})
    elif recipe is not None:
        loaded = load_recipe(recipe, {"model.path": str(target)})
    elif isinstance(target, str | Path) and Path(target).is_dir():
        raise RecipeError(f"evaluate: {str(target)!r} is a model; give also recipe=..., which says how to measure it")
    else:
        loaded = load_recipe(target)
    with tempfile.TemporaryDirectory(prefix="rlvr-") as folder:
        loaded = _filled(load_recipe(loaded, overrides), Path(folder), None, rewards, problems)
        if not loaded.problems.eval:
            raise RecipeError("problems.eval: the recipe names no eval set; add one, or give problems=[...]")
        check_versions(loaded.rollout.engine.type)
        with sampling_only(loaded, train=False) as (rollouts, data):
            metrics: dict[str, float] = {}
            for eval_set, held_out in data.eval_sets:
                metrics |= rollouts.evaluate(eval_set, held_out)[0]
    return metrics


def _filled(
    recipe: Recipe, folder: Path, problems: Rows | None, rewards: Sequence[Any] | None,
    eval_problems: Rows | Mapping[str, Rows] | None,
) -> Recipe:  # fmt: skip
    """The recipe with the given problems and rewards in place of its own; their files are written to `folder`."""
    data = recipe.model_dump(mode="json", by_alias=True)
    if rewards is not None:
        data["rewards"]["terms"] = make_terms(rewards, folder / "rewards")
        for eval_set in data["problems"]["eval"]:
            eval_set["terms"] = None
    with_problems(data, recipe, folder, train=problems, evaluation=eval_problems)
    return load_recipe(data)
