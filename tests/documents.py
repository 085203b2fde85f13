"""Reads the repository's Markdown files and comments as their readers do: commands to type, files to look at."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from accelerate.commands.launch import launch_command_parser

from rlvr.__main__ import _parser
from rlvr.config import RecipeError, load_recipe

ROOT = Path(__file__).parents[1]
PLACEHOLDER = re.compile(r"^[A-Z]+$|\[|\.\.\.")
"""An argument that stands for the reader's own, such as RECIPE or [section.key=value ...]."""


def fenced(text: str, language: str) -> list[str]:
    """The contents of a Markdown text's fenced blocks of one language ("" for none)."""
    return [block for found, block in _blocks(text) if found == language]


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and contents of each fenced block: an opening fence is one that does not close another."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of a Markdown text: lines of bash blocks, continued ones joined, and what is quoted in lines."""
    lines = [line for block in fenced(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    quoted = re.findall(
        r"`((?:rlvr|make|python -m|accelerate launch) [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)
    )
    return [line for line in [*lines, *quoted] if line.strip() and not line.lstrip().startswith("#")]


def commands_of_comments(text: str) -> list[str]:
    """The commands that a file's comments show, each on a line indented within its comment."""
    joined = re.sub(r"\\\n# +", " ", text)
    found = re.findall(r"^# {3}((?:rlvr|make|python -m|accelerate launch) .*)$", joined, re.MULTILINE)
    return [re.sub(r" {2,}\(.*\)$", "", one) for one in found]  # what is said behind a command is not part of it


def faults(command: str) -> list[str]:
    """What in a command does not exist: subcommands, targets, files, modules, keys of a recipe; empty if all does."""
    if command.startswith("for "):  # a loop of the shell that writes a file
        return (
            []
            if subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
            else ["bash cannot read it"]
        )
    command = re.sub(r"^echo '[^']*' \| ", "", command)
    words = shlex.split(re.split(r" [<>] ", command)[0], comments=True)
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            return [f"make has no target {name!r}" for name in targets if name not in known]
        case ["accelerate", "launch", *rest]:
            return _launch_faults(rest)
        case ["source", path]:
            activate = Path(sys.prefix) / path.removeprefix(".venv/")
            return [] if activate.is_file() else [f"no such file in an environment: {path}"]
        case ["rlvr", "--help"] | ["rlvr", "COMMAND", "--help"]:
            return []
        case ["rlvr", *rest]:
            return _rlvr_faults(rest)
        case ["python", "-m", module, *_]:
            found = importlib.util.find_spec(module)
            return [] if found is not None else [f"there is no module {module!r}"]
    return [f"unknown command {words[:1]}"]


def _rlvr_faults(words: list[str]) -> list[str]:
    """Parsed by the real command line; recipes that are named have to load with the overrides that are given."""
    real = [
        word for word in words
        if word in ("RECIPE", "RUN", "FILE") or not PLACEHOLDER.search(word) or ("=" in word and word[0] != "[")
    ]  # fmt: skip
    if words[0] in ("export", "merge", "replay"):  # these take files and folders, whatever their names
        real = words
    parser = _parser()
    parser.exit_on_error = False
    try:
        arguments = parser.parse_args(real)
    except (SystemExit, argparse.ArgumentError) as error:
        return [f"rlvr does not take {words}: {error}"]
    if "recipe" not in vars(arguments) or arguments.recipe in ("RECIPE", "RUN"):
        return []
    try:
        load_recipe(ROOT / arguments.recipe, arguments.overrides)
    except RecipeError as error:
        return [str(error)]
    return []


def _launch_faults(words: list[str]) -> list[str]:
    parser = launch_command_parser()
    parsed, unknown = parser.parse_known_args([word if word != "RANK" else "0" for word in words])
    found = [f"accelerate launch does not know {unknown}"] if unknown else []
    if not (ROOT / (parsed.config_file or "")).is_file():
        return [*found, f"there is no launch file {parsed.config_file!r}"]
    yaml.safe_load((ROOT / parsed.config_file).read_text(encoding="utf-8"))
    if not parsed.module or parsed.training_script != "rlvr":
        return [*found, f"launches {parsed.training_script!r}, not the module rlvr"]
    return found + _rlvr_faults(parsed.training_script_args)
