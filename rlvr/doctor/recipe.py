"""``rlvr doctor RECIPE``: checks everything that can be known before a run, including a few groups of real completions.

settings -> data, references, prompts -> verifiers on made completions        (the cheap half: `rlvr.rules.preflight`)
         -> the engine samples a few groups, graded                        (`sampled`)
         -> graded again by other processes, in another order
         -> the learner computes the same tokens                           (`learner`)
         -> seconds, memory, disk                                          (`cost`)
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import AutoConfig, PretrainedConfig

from rewards.pool import GradingPool, VerifierSpec, VerifierSpecError, WorkerStartError
from rlvr.config import Recipe
from rlvr.doctor import cost, learner
from rlvr.doctor.report import Report
from rlvr.doctor.sampled import check_sampled, completions_wanted, expected_mixed, pass_rate
from rlvr.engines.protocol import EngineError
from rlvr.errors import InputError
from rlvr.problems.data import Data, all_terms
from rlvr.problems.templates import load_tokenizer
from rlvr.records import Problem, RolloutGroup
from rlvr.rollout.rollouts import Rollouts
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.preflight import examine_cheaply, first_prompts, worst_first
from rlvr.rules.preflight_data import refused
from rlvr.rules.preflight_settings import check_settings
from rlvr.rules.preflight_verifiers import disagreement
from rlvr.rules.rule import Rule
from rlvr.run.build import check_early, make_accelerator, sampling_only
from rlvr.run.memory import num_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUPS = 8
"""Groups that are sampled unless asked otherwise."""
PATIENCE = 30.0
"""Seconds for made completions to each verifier."""
SHOWN = 2
"""Prompts that the report shows."""

ENGINE = Rule(
    "engine_fails", Grade.STOPS, "the engine does not start, or dies while it samples",
    "the message says why; rollout.engine.kv_cache_gib, gpu_memory_share and max_num_seqs decide about its memory",
)  # fmt: skip
ENGINE_RULES = (ENGINE,)

EXPLAINS: Mapping[str, tuple[str, ...]] = {
    "reward_weights_zero": ("none_right", "few_groups_teach"),
    "verifier_always_right": ("all_right",),
    "prefill_against_format": ("format_never_right", "none_right", "few_groups_teach"),
    "stop_cuts_answer": ("format_never_right", "none_right", "few_groups_teach"),
    "temperature_low": ("few_groups_teach", "group_too_small"),
    "completions_identical": ("few_groups_teach", "group_too_small"),
    "completions_empty": ("format_never_right", "none_right", "stop_never_appears", "few_groups_teach"),
    "all_truncated": ("format_never_right", "none_right", "few_groups_teach"),
    "format_never_right": ("none_right", "few_groups_teach"),
}
"""What is a symptom where its cause was found: one name for one fault."""

Say = Callable[[str], None]


def examine(recipe: Recipe, *, groups: int = GROUPS, engine: bool = True, say: Say = lambda text: None) -> Report:
    """Examine a recipe; `groups` problems are answered by its engine unless `engine` is false.

    What ends a run before it starts is a finding; so is an engine that fails. `say` is told what is going on.
    """
    report = Report(subject=recipe.name)
    findings: list[Finding] = []
    looked = False

    def cheaply(data: Data, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        nonlocal looked
        seen = first_prompts(data.train, data.renderer, tokenizer)
        report.facts += [
            ("problems", f"{len(data.train)}, every reference checked; prompts of up to {data.longest_prompt} tokens"),
            *(("", note) for note in data.notes),
        ]
        report.prompts += [visible(tokenizer, prompt.ids) for prompt in seen.prompts[:SHOWN]]
        findings.extend(
            examine_cheaply(
                recipe, data.train, seen, data.pool, data.terms, weights=num_parameters(config), patience=PATIENCE
            )
        )
        looked = True
        if not engine:
            raise _Enough

    try:
        check_early(recipe, make_accelerator(recipe))
        say("reading problems, checking references")
        with sampling_only(recipe, train=True, say=say, ready=cheaply) as (rollouts, data):
            for further in _sampled(recipe, rollouts, data, groups, report, say):
                findings += further
    except _Enough:
        pass
    except (InputError, VerifierSpecError, WorkerStartError) as error:
        findings.append(refused(error))
    except EngineError as error:
        findings.append(ENGINE.finding(str(error)))
    if not looked:
        findings += check_settings(recipe)
    report.findings += worst_first(without_symptoms(findings))
    return report


def without_symptoms(findings: Sequence[Finding]) -> list[Finding]:
    """Without what another finding that is at least as grave explains; the cause names its symptoms."""
    order = list(Grade)
    symptoms = {
        (cause.rule, finding.rule)
        for cause in findings
        for finding in findings
        if finding.rule in EXPLAINS.get(cause.rule, ()) and order.index(cause.grade) <= order.index(finding.grade)
    }
    left_out = {symptom for _, symptom in symptoms}
    kept = []
    for finding in findings:
        names = [symptom for cause, symptom in sorted(symptoms) if cause == finding.rule]
        if finding.rule not in left_out:
            more = (f"explains {', '.join(names)} as well",) if names else ()
            kept.append(replace(finding, evidence=finding.evidence + more))
    return kept


class _Enough(Exception):
    """The cheap half was all that was asked for."""


def visible(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """A prompt as text with its special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """So many problems, evenly from the whole set: files are often sorted."""
    step = max(1, len(problems) // count)
    return list(problems[::step][:count])


def _sampled(
    recipe: Recipe, rollouts: Rollouts, data: Data, count: int, report: Report, say: Say
) -> Iterator[list[Finding]]:
    """The findings of the half that needs an engine and a learner, part by part."""
    tokenizer = load_tokenizer(recipe.model.path)
    problems = spread(data.train, count)
    size = completions_wanted(recipe.rollout.group_size)
    say(f"sampling {len(problems)} x {size} completions")
    started = time.perf_counter()
    groups = rollouts.sample([(problem, 0) for problem in problems], size, rollouts.sampling)
    speed = sum(len(rollout.ids) for group in groups for rollout in group.rollouts) / (time.perf_counter() - started)
    report.facts += _facts(recipe, groups, speed)
    yield list(check_sampled(recipe, groups, data.renderer, tokenizer))
    say("grading again")
    yield _graded_again(recipe, groups)
    say("computing the same tokens by the learner")
    accelerator = make_accelerator(recipe)
    compared = learner.compare(recipe, groups, accelerator.device)
    report.facts.append(
        ("mismatch", f"{compared.mean_abs:.2g} nat a token on average over {compared.tokens}, k3 {compared.k3:.2g}")
    )
    yield list(learner.check_mismatch(recipe, compared))
    config = AutoConfig.from_pretrained(recipe.model.path)
    prompt = data.renderer.render(problems[0]).text
    price = cost.estimate(recipe, config, num_parameters(config), groups, prompt, speed, compared)
    report.facts += cost.rows(recipe, price)
    yield list(cost.check_cost(recipe, price))


def _facts(recipe: Recipe, groups: Sequence[RolloutGroup], speed: float) -> list[tuple[str, str]]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    rate = pass_rate(groups)
    lengths = sorted(len(rollout.ids) for rollout in rollouts)
    cut = sum(rollout.is_truncated for rollout in rollouts) / len(rollouts)
    rows = [("completions", f"{len(groups)} problems x {len(groups[0].rollouts)}, {speed:.0f} tokens/s")]
    if rate is not None and rewards:
        mixed = expected_mixed(groups, recipe.rollout.group_size)
        rows.append(("rewards", f"{rate:.0%} right, mean reward {statistics.fmean(rewards):.3f}"))
        rows.append(("groups", f"{mixed:.0%} of groups of {recipe.rollout.group_size} have different rewards"))
    rows.append(("length", f"{statistics.median(lengths):.0f} tokens (median), {lengths[-1]} at most, {cut:.0%} cut"))
    for name in {name: None for rollout in rollouts for name in rollout.verdicts}:
        counts = Counter(rollout.verdicts[name].outcome.value for rollout in rollouts if name in rollout.verdicts)
        rows.append((name, ", ".join(f"{outcome} {n / counts.total():.0%}" for outcome, n in counts.most_common())))
    return rows


def _graded_again(recipe: Recipe, groups: Sequence[RolloutGroup]) -> list[Finding]:
    """Each completion graded by new processes in the other order: what differs was not decided by text and
    reference."""
    terms = {term.name: term for term in all_terms(recipe)}
    graded = [
        (name, rollout.text, group.problem.reference, verdict)
        for group in groups
        for rollout in group.rollouts
        for name, verdict in rollout.verdicts.items()
    ]
    settings = recipe.rewards
    with GradingPool(
        {name: VerifierSpec(term.verifier, term.args) for name, term in terms.items()},
        workers=settings.workers, timeout=settings.timeout, memory_mb=settings.memory_mb,
    ) as pool:  # fmt: skip
        again = pool.grade_many((name, text, reference) for name, text, reference, _ in reversed(graded))
    pairs = list(zip(graded, reversed(again), strict=True))
    return [
        finding
        for name in terms
        for finding in disagreement(
            name,
            [
                (((text, repr(reference)), first), second)
                for (who, text, reference, first), second in pairs
                if who == name
            ],
        )
    ]
