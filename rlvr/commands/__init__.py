"""What each command does with a recipe that is sound."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from rich.table import Table
from transformers import AutoModelForCausalLM

from rlvr.commands.difficulty import Guess, measure
from rlvr.config import Algorithm, Recipe, RecipeError, load_recipe
from rlvr.doctor.recipe import examine as examine_recipe
from rlvr.doctor.report import Report, as_json, show
from rlvr.doctor.run import examine as examine_run
from rlvr.engines.make import serve_recipe
from rlvr.engines.weights import DTYPES
from rlvr.learn.preference import DirectPreference
from rlvr.learn.update import Learner
from rlvr.problems.data import load_examples, load_pairs
from rlvr.problems.templates import Renderer
from rlvr.records import RolloutGroup
from rlvr.rollout.evaluate import comparison
from rlvr.rules.preflight import worst_first
from rlvr.rules.preflight_data import RECIPE_UNSOUND
from rlvr.run import loop
from rlvr.run.build import Run, build, make_accelerator, prepare_model, quiet_libraries, sampling_only
from rlvr.run.dpo import prefer
from rlvr.run.replay import replay
from rlvr.run.sft import fit
from rlvr.run.versions import check_versions
from rlvr.runlog.console import make_console
from rlvr.runlog.jsonl import JsonLines
from rlvr.runlog.plots import console_curve, draw_curve
from rlvr.runlog.run_log import read_metrics, rollout_record
from rlvr.state.checkpoint import MANIFEST, STATE, newest_whole, verify


def train(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train, then show the first and the last evaluation side by side and the curve between them."""
    check_versions(recipe.rollout.engine.type)
    with build(recipe) as run:
        loop.train(run)
        if run.coordinator is not None:
            show_results(run)


def show_results(run: Run) -> None:
    """The table before and after, and the curve as PNG and on the console."""
    assert run.coordinator is not None
    lines = [one for one in read_metrics(run.folder) if any(key.startswith("eval/") for key in one)]
    keys = [f"eval/{one.name}/pass@{one.k[0]}" for one in run.recipe.problems.eval]
    if len(lines) < 2 or not keys:
        return
    log = run.coordinator.log
    log.show(comparison({f"step {line['step']}": line for line in (lines[0], lines[-1])}))
    log.show(console_curve(lines, keys))
    log.say(f"curve: {draw_curve({run.recipe.name: run.folder}, keys, run.folder / 'curve.png')}")


def evaluate(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Measure the recipe's model on its eval sets: pass@k, maj@k, avg@k with confidence intervals."""
    check_versions(recipe.rollout.engine.type)
    if not recipe.problems.eval:
        raise RecipeError("problems.eval: the recipe names no eval set; add one, or override problems.eval")
    output = _new_file(arguments.output, "--output")
    with sampling_only(recipe, train=False) as (rollouts, data):
        metrics: dict[str, float] = {}
        for one, problems in data.eval_sets:
            numbers, groups = rollouts.evaluate(one, problems)
            metrics |= numbers
            _write(output, groups, data.renderer)
    make_console().print(comparison({recipe.model.path: metrics}))


def generate(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Sample and grade a group of answers to each training problem; says how many the policy can solve, and writes how
    hard each is."""
    check_versions(recipe.rollout.engine.type)
    if arguments.guess is not None and arguments.difficulty is None:
        raise RecipeError("--guess: what is guessed goes into the file of --difficulty; give that too")
    if arguments.difficulty is not None:  # what is measured here is not looked for
        unmeasured = recipe.problems.model_copy(update={"difficulty": None, "keep": {}})
        recipe = recipe.model_copy(update={"problems": unmeasured})
    output = _new_file(arguments.output, "--output")
    difficulty = _new_file(arguments.difficulty, "--difficulty")
    guess = None
    if arguments.guess is not None:
        guess = Guess(tries=arguments.guess, begin=arguments.guess_begin, max_new_tokens=arguments.guess_tokens)
    console = make_console()
    rates: list[tuple[float | None, float | None]] = []
    with sampling_only(recipe, train=True) as (rollouts, data):
        problems = data.train[: arguments.problems]
        size, template = recipe.rollout.group_size, recipe.template.type
        for groups, lines in measure(rollouts, data, problems, size, guess, template):
            _write(output, groups, data.renderer, len(rates))
            if difficulty is not None:
                difficulty.append(lines)
            if not rates:
                first = groups[0].rollouts[0]
                prompt = data.renderer.render(groups[0].problem).text
                console.print(f"[bold]the first prompt[/bold]\n{prompt}", highlight=False)
                console.print(f"[bold]its first answer, reward {first.reward}[/bold]\n{first.text}\n", highlight=False)
            rates += [(line["pass_rate"], line.get("guess_rate")) for line in lines]
    console.print(_pass_rates([rate for rate, _ in rates]))
    if guess is not None:
        hacked = sum(rate is not None and rate > 0 for _, rate in rates)
        console.print(
            f"{hacked} of {len(rates)} problems are guessed without reasoning in {guess.tries} tries; "
            "problems.keep: {guess_rate: [null, 0]} leaves them out", markup=False, highlight=False,
        )  # fmt: skip


def serve(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Become `vllm serve` for this recipe's runs."""
    check_versions("vllm_servers")
    quiet_libraries()
    prepare_model(recipe, make_accelerator(recipe), print)
    serve_recipe(recipe, arguments.host, arguments.port)


def _pass_rates(known: Sequence[float | None]) -> Table:
    """How many problems the policy solves how often: what can be learned from lies between never and always."""
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


def sft(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Fine-tune the recipe's model on its `sft` section's rows; the result is a Hugging Face folder."""
    if recipe.sft is None:
        raise RecipeError("sft: the recipe has no such section; it needs path and steps")
    folder, accelerator = _start_on_texts(recipe)
    samples = load_examples(recipe)
    fit(
        _learner_of_texts(recipe, recipe.sft.steps, accelerator),
        samples,
        steps=recipe.sft.steps,
        batch_size=recipe.sft.batch_size,
        seed=recipe.run.seed,
        report=_reporter(accelerator, recipe.sft.steps, ("update/loss",)),
        save_to=folder,
    )
    if accelerator.is_main_process:
        print(f"policy: {folder}")


def dpo(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Train the recipe's model to prefer its `dpo` section's chosen answers; the result is a Hugging Face folder."""
    settings = recipe.dpo
    if settings is None:
        raise RecipeError("dpo: the recipe has no such section; it needs path and steps")
    folder, accelerator = _start_on_texts(recipe)
    pairs = load_pairs(recipe)
    prefer(
        _learner_of_texts(recipe, settings.steps, accelerator),
        DirectPreference(settings.beta, settings.label_smoothing),
        pairs,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=recipe.run.seed,
        report=_reporter(accelerator, settings.steps, ("update/loss", "dpo/margin", "dpo/accuracy")),
        save_to=folder,
    )
    if accelerator.is_main_process:
        print(f"policy: {folder}")


def _start_on_texts(recipe: Recipe) -> tuple[Path, Accelerator]:
    """What commands that learn from given texts do first: the folder that they will write, and the processes."""
    check_versions("hf")
    folder = Path(recipe.run.output) / recipe.name / "policy"
    if folder.exists():
        raise RecipeError(f"run.output: {folder} exists already; choose another name or run.output")
    quiet_libraries()
    accelerator = make_accelerator(recipe)
    prepare_model(recipe, accelerator, print)
    return folder, accelerator


def _learner_of_texts(recipe: Recipe, steps: int, accelerator: Accelerator) -> Learner:
    return Learner(
        recipe.model, recipe.learner, Algorithm(), total_updates=steps, temperature=1.0, accelerator=accelerator
    )


def _reporter(accelerator: Accelerator, steps: int, keys: Sequence[str]) -> Callable[[int, dict[str, float]], None]:
    """Prints about twenty lines of a step's metrics, by the last parts of their names."""

    def report(step: int, metrics: dict[str, float]) -> None:
        if accelerator.is_main_process and (step == steps or step % max(1, steps // 20) == 0):
            numbers = "  ".join(f"{key.partition('/')[2]} {metrics[key]:.4f}" for key in keys if key in metrics)
            print(f"step {step}/{steps}  {numbers}  lr {metrics['update/lr']:.2e}", flush=True)

    return report


def _new_file(path: Path | None, flag: str) -> JsonLines | None:
    if path is None:
        return None
    if path.exists():
        raise RecipeError(f"{flag}: {path} exists already")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JsonLines(path)
    except OSError as error:
        raise RecipeError(f"{flag}: {path} cannot be written: {error.strerror}") from error


def _write(output: JsonLines | None, groups: Sequence[RolloutGroup], renderer: Renderer, before: int = 0) -> None:
    if output is not None:
        output.append(
            rollout_record(0, index, group, rollout, renderer.render(group.problem).text, None)
            for index, group in enumerate(groups, before)
            for rollout in group.rollouts
        )


def export(arguments: argparse.Namespace) -> None:
    """Copy the model of a verified checkpoint; with --dtype its weights are converted."""
    source, output = arguments.checkpoint, arguments.output
    if output.exists():
        raise RecipeError(f"output: {output} exists already; choose another folder")
    if (source / "checkpoints").is_dir():
        found = newest_whole(source, print, "stop")
    else:
        found = verify(source.resolve()) if (source / MANIFEST).is_file() else None
    if found is None:
        raise RecipeError(f"checkpoint: {source} is no checkpoint, nor a run's folder that holds one")
    draft = output.with_name(f".{output.name}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(found.path, draft, ignore=shutil.ignore_patterns(STATE, MANIFEST))
    if arguments.dtype is not None:
        model = AutoModelForCausalLM.from_pretrained(draft, dtype=DTYPES[arguments.dtype])
        for old in draft.glob("*.safetensors*"):
            old.unlink()
        model.save_pretrained(draft)
    draft.rename(output)
    print(f"{output}: the model of {found.path}, after step {found.step}")


def replay_batch(arguments: argparse.Namespace) -> None:
    """Say what each sample of a kept batch does, those that are not finite first."""
    found = sorted(replay(arguments.batch), key=lambda one: one.is_finite)
    bad = sum(not one.is_finite for one in found)
    table = Table(title=f"{bad} of {len(found)} samples are not finite", title_justify="left")
    for name in ("rank", "micro-batch", "sample", "trained tokens", "loss", "least logprob", "gradient of micro-batch"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = (f"{one.loss:.4g}", f"{one.least_logprob:.4g}", f"{one.grad_norm:.4g}")
        table.add_row(str(one.rank), str(one.micro_batch), str(one.sample), str(one.tokens), *numbers)
    make_console().print(table)


def doctor(arguments: argparse.Namespace) -> int:
    """Examine a recipe or a run and show what stops or slows learning; the exit status is 1 if anything stops it."""
    folder = Path(arguments.target)
    if folder.is_dir():
        if arguments.overrides:
            raise RecipeError(f"{arguments.overrides[0]!r}: a run's folder takes no overrides; name a recipe instead")
        report = Report(subject=str(folder), findings=worst_first(examine_run(folder)))
    else:
        report = _examined_recipe(arguments)
    if arguments.json:
        print(as_json(report))
    else:
        show(report, make_console())
    return report.status


def _examined_recipe(arguments: argparse.Namespace) -> Report:
    try:
        recipe = load_recipe(arguments.target, arguments.overrides)
    except RecipeError as error:
        if not Path(arguments.target).is_file():
            raise
        return Report(subject=arguments.target, findings=[RECIPE_UNSOUND.found(str(error))])
    check_versions(recipe.rollout.engine.type)
    say: Callable[[str], None] = (lambda text: None) if arguments.json else print
    return examine_recipe(recipe, groups=arguments.groups, engine=not arguments.no_engine, say=say)


FOLDER_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {"export": export, "replay": replay_batch}
"""Commands that read what a run has written."""

COMMANDS: dict[str, Callable[[Recipe, argparse.Namespace], None]] = {
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "serve": serve,
    "sft": sft,
    "dpo": dpo,
}
