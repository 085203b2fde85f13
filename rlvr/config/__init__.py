"""The recipe: what one YAML file says about a run. Data only; the functions that obey it import it, never the reverse.

Each slot of the algorithm is a small tagged union (``{type: name, ...}``) with fields of its own, so that a setting
which its type does not have cannot be written. Defaults are settings that were tried.
"""

from rlvr.config.algorithm import Algorithm
from rlvr.config.base import PlugIn, Section
from rlvr.config.load import (
    RecipeError,
    is_run_folder,
    json_schema,
    load_recipe,
    load_recipe_of_run,
    locate_recipe,
    nearest,
    no_such_file,
)
from rlvr.config.problems import EvalSet, Problems, RewardTerm, Template
from rlvr.config.recipe import Dpo, LearnerConfig, Model, Recipe, RunConfig, Schedule, Sft
from rlvr.config.rollout import HfEngineConfig, Rewards, Rollout, VllmEngineConfig, VllmServersConfig

__all__ = [
    "Algorithm",
    "Dpo",
    "EvalSet",
    "HfEngineConfig",
    "LearnerConfig",
    "Model",
    "PlugIn",
    "Problems",
    "Recipe",
    "RecipeError",
    "RewardTerm",
    "Rewards",
    "Rollout",
    "RunConfig",
    "Schedule",
    "Section",
    "Sft",
    "Template",
    "VllmEngineConfig",
    "VllmServersConfig",
    "is_run_folder",
    "json_schema",
    "load_recipe",
    "load_recipe_of_run",
    "locate_recipe",
    "nearest",
    "no_such_file",
]
