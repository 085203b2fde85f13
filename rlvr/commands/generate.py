"""`rlvr generate`: sample and grade completions to the training problems, to see how hard each problem is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from rlvr.commands.difficulty import Guess, measure
from rlvr.commands.output import new_file, write_rollouts
from rlvr.config import Recipe, RecipeError
from rlvr.run.build import sampling_only
from rlvr.run.versions import check_versions
from rlvr.runlog.console import make_console


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Sample and grade a group of completions to each training problem; says how many the policy can solve, and writes
    how hard each is."""
    check_versions(recipe.rollout.engine.type)
    if arguments.guess is not None and arguments.difficulty is None:
        raise RecipeError("--guess: what is guessed goes into the file of --difficulty; give that too")
    if arguments.difficulty is not None:  # what is measured here is not looked for
        unmeasured = recipe.problems.model_copy(update={"difficulty": None, "keep": {}})
        recipe = recipe.model_copy(update={"problems": unmeasured})
    output = new_file(arguments.output, "--output")
    difficulty = new_file(arguments.difficulty, "--difficulty")
    guess = None
    if arguments.guess is not None:
        guess = Guess(tries=arguments.guess, begin=arguments.guess_begin, max_new_tokens=arguments.guess_tokens)
    console = make_console()
    rates: list[tuple[float | None, float | None]] = []
    with sampling_only(recipe, train=True) as (rollouts, data):
        problems = data.train[: arguments.problems]
        size, template = recipe.rollout.group_size, recipe.template.type
        for groups, lines in measure(rollouts, data, problems, size, guess, template):
            write_rollouts(output, groups, data.renderer, len(rates))
            if difficulty is not None:
                difficulty.append(lines)
            if not rates:
                first = groups[0].rollouts[0]
                prompt = data.renderer.render(groups[0].problem).text
                # what the model or the data says is text, not markup: "[/INST]" would end the command
                console.print(Text("the first prompt", style="bold"))
                console.print(prompt, markup=False, highlight=False)
                console.print(Text(f"its first completion, reward {first.reward}", style="bold"))
                console.print(f"{first.text}\n", markup=False, highlight=False)
            rates += [(line["pass_rate"], line.get("guess_rate")) for line in lines]
    console.print(_pass_rates([rate for rate, _ in rates]))
    if guess is not None:
        hacked = sum(rate is not None and rate > 0 for _, rate in rates)
        console.print(
            f"{hacked} of {len(rates)} problems are guessed without reasoning in {guess.tries} tries; "
            "problems.keep: {guess_rate: [null, 0]} leaves them out", markup=False, highlight=False,
        )  # fmt: skip


def _pass_rates(known: Sequence[float | None]) -> Table:
    """A histogram of pass rates: problems solved sometimes, neither never nor always, are those to learn from."""
    rates = [rate for rate in known if rate is not None]
    table = Table(title="Pass rate of the policy", title_justify="left")
    table.add_column("solved")
    table.add_column("problems", justify="right")
    for name, low, high in (
        ("never", 0.0, 0.0), ("up to a quarter", 1e-9, 0.25), ("up to a half", 0.25 + 1e-9, 0.5),
        ("up to three quarters", 0.5 + 1e-9, 0.75), ("more, not always", 0.75 + 1e-9, 1 - 1e-9), ("always", 1.0, 1.0),
    ):  # fmt: skip
        table.add_row(name, str(sum(low <= rate <= high for rate in rates)))
    table.add_row("not scored", str(len(known) - len(rates)))
    return table
