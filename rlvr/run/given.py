"""Checks that what a recipe refers to exists: sections, files, the model's folder.

Needs neither torch nor transformers, whose import takes seconds: a typo is reported at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlvr.config import Recipe, RecipeError, is_run_folder, no_such_file
from rlvr.config.algorithm import GivenTextLikelihood
from rlvr.config.merge import MergeConfig
from rlvr.config.problems import Benchmark, JsonLinesConfig, Source
from rlvr.hub import may_be_hub_name

TEXT_COMMANDS = ("sft", "dpo")


def check_given(recipe: Recipe, command: str) -> None:
    """Check that a recipe has what `rlvr COMMAND` needs. Raises `RecipeError` for a section, file or folder that is not
    there."""
    if command in TEXT_COMMANDS:
        if getattr(recipe, command) is None:
            raise RecipeError(f"{command}: the recipe has no such section; it needs path and steps")
        folder = Path(recipe.run.output) / recipe.name / "policy"
        if folder.exists():
            raise RecipeError(f"run.output: {folder} exists already; choose another name or run.output")
    if command == "eval" and not recipe.problems.eval:
        raise RecipeError("problems.eval: the recipe names no eval set; add one, or override problems.eval")
    for key, path in _files(recipe, command):
        if not Path(path).exists():
            raise RecipeError(f"{key}: {no_such_file(Path(path))}")
    if recipe.model.prepare is None or Path(recipe.model.path).exists():
        check_model_folder(recipe.model.path)


def check_export(arguments: argparse.Namespace) -> None:
    """Check what `rlvr export` copies and where to. Raises `RecipeError` unless there is a checkpoint and room for
    it."""
    source, output = arguments.checkpoint, arguments.output
    if output.exists():
        raise RecipeError(f"output: {output} exists already; choose another folder")
    if not (source / "checkpoints").is_dir() and not (source / "manifest.json").is_file():
        raise RecipeError(f"checkpoint: {source} is no checkpoint, nor a run's folder that holds one")


def _files(recipe: Recipe, command: str) -> Iterator[tuple[str, str]]:
    """Key and path of each file that the command reads."""
    if command in TEXT_COMMANDS:
        yield f"{command}.path", getattr(recipe, command).path
        return
    if command != "eval":
        yield from _file_of("problems.train", recipe.problems.train)
        if recipe.problems.difficulty is not None and command == "train":
            yield "problems.difficulty", recipe.problems.difficulty
        if isinstance(given := recipe.algorithm.given_text, GivenTextLikelihood):
            yield "algorithm.given_text.path", given.path
    for index, eval_set in enumerate(recipe.problems.eval):
        yield from _file_of(f"problems.eval.{index}.source", eval_set.source)


def _file_of(key: str, source: Source) -> Iterator[tuple[str, str]]:
    if isinstance(source, JsonLinesConfig | Benchmark) and source.path is not None:
        yield f"{key}.path", source.path


def check_merge(config: MergeConfig, output: Path) -> None:
    """What `rlvr merge` reads and where it writes. Raises `RecipeError` unless all of it is there."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise RecipeError(f"output: {output} exists already and is no empty folder; choose another folder")
    for index, model in enumerate(config.models):
        check_model_folder(model.model, f"models.{index}.model")
    if config.base_model is not None:
        check_model_folder(config.base_model, "base_model")


def check_model_folder(name: str, key: str = "model.path") -> None:
    """Check that the model that `key` names can be loaded, as far as possible without loading it; a name on the hub
    passes. Raises `RecipeError`."""
    path = Path(name)
    if is_run_folder(path):
        raise RecipeError(
            f"{key}: {name!r} is a run's folder; the model that it trained is {path / 'checkpoints/latest'}"
        )
    if path.is_dir():
        _check_weights(path, key)
    elif not may_be_hub_name(name) or holds_models(path.parent):
        near = f"; {path.parent} holds {_contents(path.parent)}" if path.parent.is_dir() else ""
        raise RecipeError(
            f"{key}: there is no folder {str(path)!r}{near}; give a Hugging Face folder or a name on the hub"
        )


def _contents(folder: Path) -> str:
    """Names of what a folder holds, not too many of them."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return (", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "nothing"


def holds_models(folder: Path) -> bool:
    """True for a folder of model folders: ``models/x`` is then no name on the hub."""
    return folder.name == "models" or (folder.is_dir() and any(folder.glob("*/config.json")))


def _check_weights(folder: Path, key: str) -> None:
    """Raise `RecipeError` where a model's folder has no weights, or a file of them that was cut short."""
    if not (folder / "config.json").is_file():
        raise RecipeError(
            f"{key}: {str(folder)!r} is no model that transformers can read: it has no config.json, it holds "
            f"{_contents(folder)}"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise RecipeError(f"{key}: {str(folder)!r} holds a config.json and no weights: no file *.safetensors or *.bin")
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise RecipeError(
                f"{key}: {file} cannot be read ({error}): it was cut short or damaged; copy or download it again"
            ) from None
