"""Loads a run's problems: checks references, removes overlap with eval sets, renders prompts. No weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import AutoConfig, PreTrainedTokenizerBase

from rewards.combine import Term
from rewards.pool import GradingPool, VerifierSpec
from rlvr.config import EvalSet, Recipe, RewardTerm
from rlvr.config.algorithm import GivenTextLikelihood
from rlvr.config.problems import JsonLinesConfig
from rlvr.config.recipe import Sft
from rlvr.problems.difficulty import add_difficulty, keep_in_range
from rlvr.problems.examples import Example, Pair, to_pairs, to_samples
from rlvr.problems.overlap import apply_overlap, find_overlap
from rlvr.problems.references import check_references
from rlvr.problems.rows import ProblemError
from rlvr.problems.sources import load_problems
from rlvr.problems.templates import Renderer, check_fits, load_tokenizer
from rlvr.records import Problem, TrainingSample


@dataclass(slots=True, kw_only=True)
class Data:
    """The problems that a run trains and evaluates on, with their reward terms."""

    train: list[Problem]
    eval_sets: list[tuple[EvalSet, list[Problem]]]
    renderer: Renderer
    pool: GradingPool
    """Holds the verifiers of all terms; whoever has a `Data` closes it."""
    terms: list[Term]
    longest_prompt: int
    """In tokens."""
    texts: list[TrainingSample] = field(default_factory=list)
    """The rows of ``algorithm.given_text``."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: problems left out, overlaps."""


def all_terms(recipe: Recipe) -> list[RewardTerm]:
    """The terms of the rewards and those that only an eval set uses."""
    return [*recipe.rewards.terms, *(term for eval_set in recipe.problems.eval for term in eval_set.terms or ())]


def load_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, model_len: int, *, train: bool = True) -> Data:
    """Load, check and render everything. Raises `ProblemError`, `VerifierSpecError` or `WorkerStartError`; with
    `train` false only the eval sets are loaded."""
    terms = all_terms(recipe)
    renderer = Renderer(recipe.template, tokenizer)
    trained = _judged_by(load_problems(recipe.problems.train), recipe.rewards.terms, terms) if train else []
    evals = [
        (eval_set, _judged_by(load_problems(eval_set.source), eval_set.terms or recipe.rewards.terms, terms))
        for eval_set in recipe.problems.eval
    ]
    notes: list[str] = []
    texts: list[TrainingSample] = []
    if train and isinstance(given := recipe.algorithm.given_text, GivenTextLikelihood):
        rows, texts = _examples(recipe, given, "algorithm.given_text", renderer, tokenizer)
        overlap = find_overlap(rows, {eval_set.name: problems for eval_set, problems in evals})
        kept = {id(row) for row in apply_overlap(rows, overlap, recipe.problems.overlap)}
        texts = [text for row, text in zip(rows, texts, strict=True) if id(row) in kept]
        notes = [f"algorithm.given_text: {line}" for line in overlap.lines()]
        if len(texts) < len(rows):
            notes.append(f"{len(rows) - len(texts)} rows of algorithm.given_text left out (problems.overlap: drop)")
    if train and evals:
        overlap = find_overlap(trained, {eval_set.name: problems for eval_set, problems in evals})
        before = len(trained)
        trained = apply_overlap(trained, overlap, recipe.problems.overlap)
        notes += overlap.lines()
        if len(trained) < before:
            notes.append(f"{before - len(trained)} training problems left out (problems.overlap: drop)")
    if train and recipe.problems.difficulty is not None:
        trained = add_difficulty(trained, recipe.problems.difficulty)
    if train and recipe.problems.keep:
        trained, left_out = keep_in_range(trained, recipe.problems.keep)
        notes += left_out
    longest = 0
    for name, problems, max_new_tokens in [("training problems", trained, recipe.rollout.max_new_tokens)] + [
        (f"problems of eval set {eval_set.name!r}", problems, eval_set.max_new_tokens or recipe.rollout.max_new_tokens)
        for eval_set, problems in evals
    ]:
        prompts = [renderer.render(problem) for problem in problems]
        room = model_len - max_new_tokens
        if recipe.problems.too_long == "drop" and any(len(prompt.ids) <= room for prompt in prompts):
            fits = [len(prompt.ids) <= room for prompt in prompts]
            if not all(fits):
                notes.append(
                    f"{fits.count(False)} of {len(fits)} {name} left out (problems.too_long: drop): their prompts have "
                    f"more than {room} tokens"
                )
            problems[:] = [problem for problem, is_short in zip(problems, fits, strict=True) if is_short]
            prompts = [prompt for prompt, is_short in zip(prompts, fits, strict=True) if is_short]
        if prompts:
            check_fits(prompts, max_new_tokens, model_len)
        longest = max([longest, *(len(prompt.ids) for prompt in prompts)])
    settings = recipe.rewards
    pool = GradingPool(
        {term.name: VerifierSpec(term.verifier, term.args) for term in terms},
        workers=settings.workers, timeout=settings.timeout, memory_mb=settings.memory_mb,
    )  # fmt: skip
    try:
        check_references(trained, pool, terms)
        for eval_set, problems in evals:
            check_references(problems, pool, terms, eval_set=eval_set.name)
    except BaseException:
        pool.close()
        raise
    return Data(
        train=trained, eval_sets=evals, renderer=renderer, pool=pool, longest_prompt=longest, notes=notes,
        texts=texts,
        terms=[Term(term.name, term.weight, term.gate) for term in terms],
    )  # fmt: skip


def _judged_by(
    problems: Sequence[Problem], own: Sequence[RewardTerm], all_of_them: Sequence[RewardTerm]
) -> list[Problem]:
    """Tag each problem with the reward terms that apply to it, unless all do."""
    if len(own) == len(all_of_them):
        return list(problems)
    names = tuple(term.name for term in own)
    return [problem if problem.verifiers else dataclasses.replace(problem, verifiers=names) for problem in problems]


def load_examples(recipe: Recipe) -> list[TrainingSample]:
    """The rows of the `sft` section as samples: prompts under the recipe's template, completions with the end of
    text."""
    assert recipe.sft is not None
    tokenizer = load_tokenizer(recipe.model.path)
    return _examples(recipe, recipe.sft, "sft", Renderer(recipe.template, tokenizer), tokenizer)[1]


def _examples(
    recipe: Recipe, section: Sft | GivenTextLikelihood, key: str, renderer: Renderer,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Problem], list[TrainingSample]]:  # fmt: skip
    """The rows of a section that names a file of given completions, as problems and as samples."""
    source = JsonLinesConfig(type="jsonl", path=section.path, prompt=section.prompt, reference=section.completion)
    rows = load_problems(source)
    wrong = [row for row in rows if not isinstance(row.reference, str) or not row.reference.strip()]
    if wrong:
        raise ProblemError(f"{wrong[0].source}: {key}.completion names a text to imitate, got {wrong[0].reference!r}")
    samples = to_samples([Example(row, row.reference) for row in rows], renderer, tokenizer)
    _check_room(recipe, rows, samples)
    return rows, samples


def load_pairs(recipe: Recipe) -> list[Pair]:
    """The rows of the `dpo` section as pairs of samples, chosen and rejected. Raises `ProblemError` naming the row."""
    assert recipe.dpo is not None
    tokenizer = load_tokenizer(recipe.model.path)
    rows = load_problems(
        JsonLinesConfig(type="jsonl", path=recipe.dpo.path, prompt=recipe.dpo.prompt, reference=recipe.dpo.chosen)
    )
    pairs = to_pairs(rows, recipe.dpo.rejected, Renderer(recipe.template, tokenizer), tokenizer)
    for side in zip(*pairs, strict=True):
        _check_room(recipe, rows, side)
    return pairs


def _check_room(recipe: Recipe, rows: Sequence[Problem], samples: Sequence[TrainingSample]) -> None:
    """Raise `ProblemError` for the longest row unless the model takes it."""
    longest = max(range(len(samples)), key=lambda index: len(samples[index].ids))
    room = int(AutoConfig.from_pretrained(recipe.model.path).max_position_embeddings)
    if len(samples[longest].ids) > room:
        raise ProblemError(
            f"{rows[longest].source}: prompt and completion have {len(samples[longest].ids)} tokens, the model takes "
            f"{room}"
        )
