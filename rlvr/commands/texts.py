"""Shared by `rlvr sft` and `rlvr dpo`: set-up, learner and progress lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from rlvr.config import Algorithm, Recipe
from rlvr.learn.update import Learner
from rlvr.run.build import make_accelerator, prepare_model, quiet_libraries
from rlvr.run.versions import check_versions


def start(recipe: Recipe) -> tuple[Path, Accelerator]:
    """Set up a command that learns from given texts: its output folder and its processes."""
    check_versions("hf")
    folder = Path(recipe.run.output) / recipe.name / "policy"
    quiet_libraries()
    accelerator = make_accelerator(recipe)
    prepare_model(recipe, accelerator, print)
    return folder, accelerator


def make_learner(recipe: Recipe, steps: int, accelerator: Accelerator) -> Learner:
    return Learner(
        recipe.model, recipe.learner, Algorithm(), total_updates=steps, temperature=1.0, accelerator=accelerator
    )


def make_reporter(accelerator: Accelerator, steps: int, keys: Sequence[str]) -> Callable[[int, dict[str, float]], None]:
    """Prints about twenty lines of a step's metrics, by the last parts of their names."""

    def report(step: int, metrics: dict[str, float]) -> None:
        if accelerator.is_main_process and (step == steps or step % max(1, steps // 20) == 0):
            numbers = "  ".join(f"{key.partition('/')[2]} {metrics[key]:.4f}" for key in keys if key in metrics)
            print(f"step {step}/{steps}  {numbers}  lr {metrics['update/lr']:.2e}", flush=True)

    return report
