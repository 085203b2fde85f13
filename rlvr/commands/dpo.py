"""`rlvr dpo`: direct preference optimisation on pairs of completions."""

from __future__ import annotations

import argparse

from rlvr.commands.texts import make_learner, make_reporter, start
from rlvr.config import Recipe
from rlvr.learn.preference import DirectPreference
from rlvr.problems.data import load_pairs
from rlvr.run.dpo import prefer


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train the recipe's model to prefer its `dpo` section's chosen completions; the result is a Hugging Face
    folder."""
    settings = recipe.dpo
    assert settings is not None
    folder, accelerator = start(recipe)
    pairs = load_pairs(recipe)
    prefer(
        make_learner(recipe, settings.steps, accelerator),
        DirectPreference(settings.beta, settings.label_smoothing),
        pairs,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=recipe.run.seed,
        report=make_reporter(accelerator, settings.steps, ("update/loss", "dpo/margin", "dpo/accuracy")),
        save_to=folder,
    )
    if accelerator.is_main_process:
        print(f"policy: {folder}")
