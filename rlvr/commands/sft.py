"""`rlvr sft`: supervised fine-tuning on given completions."""

from __future__ import annotations

import argparse

from rlvr.commands.texts import make_learner, make_reporter, start
from rlvr.config import Recipe
from rlvr.problems.data import load_examples
from rlvr.run.sft import fit


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Fine-tune the recipe's model on its `sft` section's rows; the result is a Hugging Face folder."""
    assert recipe.sft is not None
    folder, accelerator = start(recipe)
    samples = load_examples(recipe)
    fit(
        make_learner(recipe, recipe.sft.steps, accelerator),
        samples,
        steps=recipe.sft.steps,
        batch_size=recipe.sft.batch_size,
        seed=recipe.run.seed,
        report=make_reporter(accelerator, recipe.sft.steps, ("update/loss",)),
        save_to=folder,
    )
    if accelerator.is_main_process:
        print(f"policy: {folder}")
