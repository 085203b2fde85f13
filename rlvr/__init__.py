"""Reinforcement learning of language models on verified outcome rewards.

From Python::

    import rlvr

    def right(completion, reference):
        return completion.strip().endswith(reference)

    recipe = rlvr.load_recipe("quickstart", {"run.steps": 20})
    result = rlvr.train(recipe, problems=[{"problem": "What is 2+2?", "answer": "4"}, ...], rewards=[right])
    print(result.metrics[-1], result.model_path)

Names are loaded when they are first used: importing this package takes no time.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlvr.api.grading import grade as grade
    from rlvr.api.result import RunResult as RunResult
    from rlvr.api.training import evaluate as evaluate
    from rlvr.api.training import train as train
    from rlvr.config import Recipe as Recipe
    from rlvr.config import RecipeError as RecipeError
    from rlvr.config import load_recipe as load_recipe

# torch reads this at its first allocation: activations come and go by the megabyte, and a kernel that hands them out in
# pages of 4 KiB takes a sixth of an update's time on a CPU
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# oneDNN keeps the code of 1,024 matrix products by default. Every step brings new sizes, so that their memory would
# grow for hundreds of steps; one update needs about a hundred
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

_PLACES = {
    "Recipe": "rlvr.config",
    "RecipeError": "rlvr.config",
    "RunResult": "rlvr.api.result",
    "evaluate": "rlvr.api.training",
    "grade": "rlvr.api.grading",
    "load_recipe": "rlvr.config",
    "train": "rlvr.api.training",
}
"""Public names and the modules that hold them."""

__all__ = ["Recipe", "RecipeError", "RunResult", "evaluate", "grade", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rlvr' has no attribute {name!r}; it has {', '.join(__all__)}")
    if _PLACES[name].startswith("rlvr.api."):
        check_shadows = importlib.import_module("rlvr.plugins").check_shadows
        check_shadows(Path(sys.path[0]))  # the folder of the script
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
