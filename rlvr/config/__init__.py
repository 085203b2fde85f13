"""The recipe: everything that one YAML file says about a run, as data. The code that acts on it imports it, never the
reverse.

Each slot of the algorithm is a small tagged union (``{type: name, ...}``) whose types have their own fields, so a type
cannot be given a setting that it does not have. Defaults are settings that were tried.
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
from rlvr.config.recipe import Dpo, LearnerConfig, LRSchedule, Model, Recipe, RunConfig, Sft
from rlvr.config.rollout import HfEngineConfig, Rewards, Rollout, VllmEngineConfig, VllmServersConfig

__all__ = [
    "Algorithm",
    "Dpo",
    "EvalSet",
    "HfEngineConfig",
    "LRSchedule",
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
