"""Trains language models by reinforcement learning on outcome rewards; each command is a module of `rlvr.commands`."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rlvr.config import Recipe, is_run_folder, load_recipe, load_recipe_of_run
from rlvr.config.merge import MergeConfig, load_merge
from rlvr.errors import InputError, RlvrError
from rlvr.plugins import check_shadows
from rlvr.run.given import check_export, check_given, check_merge
from rlvr.run.signals import PEER_GONE, Interrupted, interruptible
from rlvr.view.arguments import add_view_arguments

TAKE_RUNS = ("eval", "generate", "serve")
"""Commands on a recipe that take a run's folder instead, and then its trained model."""

SETTINGS = "`rlvr schema KEY` explains a setting, `rlvr schema rollout` a section; docs/recipe.md lists all of them."

READER_GONE = 141
"""128 + SIGPIPE, as shells count."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 when it did what was asked, 1 when the run failed, 2 for a recipe or data
    that cannot be run, 130 when it was interrupted, 75 when SIGTERM ended it and the same command goes on, 3 when a
    rule of ``run.stop_on`` did."""
    arguments = _parsed(argv)
    sys.path.insert(0, os.getcwd())  # plug-ins in the current directory are found, as with `python -m`
    try:
        check_shadows(Path.cwd())
        with interruptible():
            status = _run(arguments)
        sys.stdout.flush()
        return status
    except Interrupted as stop:
        print(f"rlvr: stopped by {stop}; what was written is whole", file=sys.stderr)
        for note in getattr(stop, "__notes__", ()):
            print(f"rlvr: {note}", file=sys.stderr)
        return stop.status
    except InputError as error:
        print(f"rlvr: {error}", file=sys.stderr)
        return error.exit_status
    except RlvrError as error:
        print(f"rlvr: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE


def _reader_is_gone() -> bool:
    """True if standard output is closed, as after ``| head``; the rest of the output is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
    return True


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Overrides may stand anywhere, also where argparse does not expect them: before the recipe, and
    before and after options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    changes = [argument for argument in rest if "=" in argument and not argument.startswith("-")]
    unknown = [argument for argument in rest if argument not in changes]
    if unknown and "overrides" in arguments and (setting := _setting_with_dashes(rest)) is not None:
        parser.error(f"settings of the recipe are written without dashes: {setting}")
    if unknown or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if "overrides" in arguments:
        arguments.overrides = [*arguments.overrides, *changes]
        if arguments.command != "merge":
            _put_recipe_first(arguments, parser)
    return arguments


def _setting_with_dashes(rest: Sequence[str]) -> str | None:
    """Suggests the override meant by the first ``--learner.lr=1e-4`` or ``--learner.lr 1e-4``."""
    for index, argument in enumerate(rest):
        key, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("--") and key.partition(".")[0] in Recipe.model_fields:
            behind = rest[index + 1] if index + 1 < len(rest) and not rest[index + 1].startswith("--") else "VALUE"
            return f"{key}={value if equals else behind}"
    return None


def _put_recipe_first(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Take the recipe from among the overrides where one of these stands before it."""
    place = "recipe" if "recipe" in arguments else "target"
    first = getattr(arguments, place)
    if "=" not in first or Path(first).exists():
        return
    others = [text for text in arguments.overrides if "=" not in text]
    if not others:
        parser.error(f"the recipe is missing: rlvr {arguments.command} RECIPE {first}")
    setattr(arguments, place, others[0])
    arguments.overrides.remove(others[0])
    arguments.overrides.insert(0, first)


def _recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that was named; for commands that use a model, a run's folder stands for what it trained."""
    folder = Path(arguments.recipe)
    if arguments.command in TAKE_RUNS and is_run_folder(folder):
        return load_recipe_of_run(folder, arguments.overrides)
    return load_recipe(arguments.recipe, arguments.overrides)


def _run(arguments: argparse.Namespace) -> int:
    """Import what takes time only once the recipe, where a command takes one, is known to be sound."""
    if arguments.command == "view":
        from rlvr.view.command import view

        return view(arguments)
    given: list[Recipe | MergeConfig] = []
    if "recipe" in arguments:
        check_given(recipe := _recipe_of(arguments), arguments.command)
        given.append(recipe)
    if arguments.command == "merge":
        check_merge(merge := load_merge(arguments.merge, arguments.overrides), arguments.output)
        given.append(merge)
    if arguments.command == "export":
        check_export(arguments)
    if arguments.command not in ("recipes", "schema") and os.environ.get("RANK", "0") == "0":
        print(f"rlvr {arguments.command}: loading torch and transformers", file=sys.stderr, flush=True)
    try:
        command = importlib.import_module(f"rlvr.commands.{arguments.command}")
    except ImportError as error:  # transformers loads torchvision wherever it is installed
        if "torchvision::" not in str(error.__cause__):
            raise
        raise InputError(
            "the installed torchvision belongs to another build of torch (vLLM's CPU build brings it), and no command "
            "works with it; rlvr needs none of these: pip uninstall torchvision torchaudio torchcodec"
        ) from error
    if arguments.command in ("recipes", "schema"):
        command.run(arguments)
        return 0
    from rewards.process import WorkerStartError
    from rewards.spec import VerifierSpecError

    try:
        return command.run(*given, arguments) or 0
    except (VerifierSpecError, WorkerStartError) as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        if isinstance(error, RlvrError) or not any(sign in str(error) for sign in PEER_GONE):
            raise
        rank = os.environ.get("RANK", "?")
        print(f"rlvr: rank {rank} ends because another process did; that one's message says why", file=sys.stderr)
        return 1


def _count(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlvr", description=(__doc__ or "").partition(";")[0] + ".")
    parser.add_argument("--version", action="version", version=f"rlvr {metadata.version('rlvr')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("train", "train the recipe's model by reinforcement learning"),
        ("eval", "measure the recipe's model on its eval sets"),
        ("generate", "sample and grade completions to the recipe's training problems"),
        ("serve", "serve the recipe's model to runs with rollout.engine {type: vllm_servers, urls: [...]}"),
        ("select", "make rows for sft or dpo of completions to the recipe's training problems"),
        ("sft", "fine-tune the recipe's model on rows of prompt and completion"),
        ("dpo", "train the recipe's model on rows of prompt, chosen and rejected completion"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=SETTINGS)
        takes = "YAML file, or the name of one that `rlvr recipes` lists"
        takes += ", or the folder of a run, for the model that it trained" if name in TAKE_RUNS else ""
        command.add_argument("recipe", metavar="RECIPE|RUN" if name in TAKE_RUNS else "RECIPE", help=takes)
        _add_overrides(command)
        if name in ("eval", "generate"):
            command.add_argument("--output", type=Path, help="JSON-lines file for the rollouts; it must not exist")
        if name == "select":
            text = "rollouts.jsonl of a run, its folder, or what generate wrote as --output; may be given again"
            command.add_argument("--from", dest="sources", type=Path, action="append", default=[], help=text)
            command.add_argument("--output", type=Path, help="JSON-lines file for the rows")
            command.add_argument("--force", action="store_true", help="replace --output if it exists")
        if name == "generate":
            command.add_argument("--problems", type=_count, help="only the first so many problems")
            _add_difficulty_arguments(command)
        if name == "serve":
            command.add_argument("--host", default="127.0.0.1", help="a private address: weights can be replaced there")
            command.add_argument("--port", type=_count, help="default: a free one, which is printed")
            command.add_argument("--public", action="store_true", help="let --host be an address that others reach")
    text = "say what stops or slows learning: in a recipe before its run, or in a run's folder"
    command = commands.add_parser("doctor", help=text, description=text)
    command.add_argument("target", metavar="RECIPE|RUN", help="YAML file, name of a shipped recipe, or a run's folder")
    _add_overrides(command)
    command.add_argument(
        "--groups", type=_count, default=8, help="problems to sample completions to (default %(default)s)"
    )
    command.add_argument("--no-engine", action="store_true", help="settings, data, template and verifiers only")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    text = "merge the weights of models of one architecture into a Hugging Face folder"
    command = commands.add_parser("merge", help=text, description=text)
    command.add_argument(
        "merge", type=Path, metavar="MERGE", help="YAML file: method, models, weights (docs/merging.md)"
    )
    command.add_argument(
        "output", type=Path, metavar="FOLDER", help="the folder to write; it must not exist or be empty"
    )
    _add_overrides(command, "change a setting of the merge: parameters.t=0.3 models.0.parameters.weight=0.7")
    text = "copy the model of a checkpoint into a plain Hugging Face folder"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("checkpoint", type=Path, help="a checkpoint's folder, or a run's: its last one")
    command.add_argument("output", type=Path, help="the folder to write; it must not exist")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as it was trained")
    text = "look again at a batch whose loss or gradient was not finite"
    command = commands.add_parser("replay", help=text, description=text)
    command.add_argument("batch", type=Path, help="what the run's message named: RUN/non_finite/step_NNNNNN")
    command.add_argument(
        "--run-plugins", action="store_true", help="run the functions that its recipe names: for a folder of your own"
    )
    text = "show runs in a browser: curves, rollouts, problems, suspects"
    add_view_arguments(commands.add_parser("view", help=text, description=text))
    text = "list the recipes and launch files that come with rlvr, copy one to edit, or print its path"
    recipes = commands.add_parser("recipes", help=text, description=text)
    actions = recipes.add_subparsers(dest="action", metavar="copy|path")
    copy = actions.add_parser("copy", help="write a recipe, and what it needs beside it, into a folder")
    path = actions.add_parser(
        "path", help="print where a file is, as in --config_file $(rlvr recipes path launch/cpu.yaml)"
    )
    for action in (copy, path):
        action.add_argument("name", help="as listed: quickstart, launch/cpu.yaml")
    copy.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: the current directory")
    text = "print the recipe's JSON schema, for editors, or what one of its keys means"
    command = commands.add_parser("schema", help=text, description=text)
    command.add_argument("key", nargs="?", help="as in an override: learner.lr, rollout.engine, rewards.terms.0.weight")
    return parser


def _add_overrides(
    command: argparse.ArgumentParser, text: str = "change a setting of the recipe: learner.lr=1e-5 name=second"
) -> None:
    command.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=text)


def _add_difficulty_arguments(command: argparse.ArgumentParser) -> None:
    text = "JSON-lines file of pass rates and mean lengths that problems.difficulty reads; it must not exist"
    command.add_argument("--difficulty", type=Path, metavar="FILE", help=text)
    text = "also try so many completions without reasoning to each problem: the file's guess_rate"
    command.add_argument("--guess", type=_count, metavar="TRIES", help=text)
    text = "what such a completion begins with; default: an empty thought and <answer>, or 'The answer is \\boxed{'"
    command.add_argument("--guess-begin", metavar="TEXT", help=text)
    command.add_argument("--guess-tokens", type=_count, default=32, metavar="N", help="most tokens of one; default 32")


if __name__ == "__main__":
    sys.exit(main())
