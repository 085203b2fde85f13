"""The meaning of every logged number: key, unit, formula, meaning, healthy range.

A test proves that a run logs exactly the keys listed here; ``docs/metrics.md`` is generated from it. In a key,
``{name}`` is a reward term, an eval set or whatever the meaning says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from rewards import Outcome
from rlvr.runlog.thresholds import THRESHOLDS


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the glossary."""

    key: str
    unit: str
    formula: str
    meaning: str
    healthy: tuple[float | None, float | None] | None = None
    """Least and greatest value that need no look, None for no bound; None as a whole where there is no such range."""
    is_measured: bool = False
    """True for times, rates and memory, which differ when the same run is done twice; all others are reproducible."""


_ROLLOUTS = (
    Metric("step", "", "", "Updates of the policy done so far; step 0 holds the evaluation before the first."),
    Metric(
        "reward/mean",
        "reward",
        "mean of r over scored rollouts",
        "What the policy is trained to raise, before shaping.",
    ),
    Metric(
        "reward/std",
        "reward",
        "population standard deviation of r",
        "Spread over all scored rollouts; 0 teaches nothing.",
        (1e-6, None),
    ),
    Metric(
        "reward/se",
        "reward",
        "sqrt(P/(P-1) * sum_p (sum_g (r_pg - mean))^2) / N",
        "Standard error of reward/mean, "
        "clustered by problem. Two steps that differ by less than 2 of it do not differ.",
    ),
    Metric("reward/shaping", "reward", "mean of (shaped r - r) over trained rollouts", "What algorithm.shaping adds."),
    Metric("reward/{name}", "score", "mean score of the term over its scored verdicts", "One reward term, unweighted."),
    *(
        Metric(
            f"outcome/{{name}}/{outcome.value.lower()}",
            "share",
            f"verdicts {outcome.value} / verdicts of the term",
            meaning,
            healthy,
        )
        for outcome, meaning, healthy in (
            (Outcome.CORRECT, "Full marks.", None),
            (Outcome.PARTIAL, "Part of the marks.", None),
            (Outcome.WRONG, "An answer was read and is not right.", None),
            (Outcome.NO_ANSWER, "No answer in the text; high at the start of R1-Zero runs, then falling.", (None, 0.5)),
            (Outcome.UNREADABLE, "An answer that cannot be read.", (None, 0.1)),
            (Outcome.BAD_FORMAT, "The structure that was asked for is broken.", (None, 0.5)),
            (Outcome.TIMEOUT, "The grader hung on the text and was killed.", (None, 0.01)),
            (Outcome.CRASHED, "The grader died on the text.", (None, 0.01)),
            (Outcome.BAD_REFERENCE, "The problem's reference cannot be graded against: fix the data.", (None, 0.0)),
            (Outcome.ERROR, "The verifier raised or the machinery failed: read the verdict's detail.", (None, 0.0)),
        )
    ),
    Metric(
        "judge/{name}/agreement",
        "share",
        "completions on which rules and judge say the same / completions on which the judge voted",
        "A term of rewards.hybrid: with args.audit above 0, a fall says that one of the two is being fooled.",
    ),
    Metric(
        "judge/{name}/repaired",
        "share",
        "completions that the rules refused and the judge accepted / verdicts of the term",
        "What the judge adds to a term of rewards.hybrid; when it rises late in a run, read some in rollouts.jsonl.",
    ),
    Metric("rollouts/count", "rollouts", "P * G", "Completions sampled in the step."),
    Metric(
        "rollouts/unscored",
        "share",
        "rollouts without reward / rollouts",
        "Left out of training; the run stops above rewards.max_unscored.",
        (None, 0.01),
    ),
    Metric("length/mean", "tokens", "mean of T", "Tokens a completion, the stop token included."),
    Metric(
        "length/mean_correct",
        "tokens",
        "mean of T over right completions",
        "If far below length/mean_wrong, long thoughts fail.",
    ),
    Metric(
        "length/mean_wrong",
        "tokens",
        "mean of T over wrong completions",
        "If it grows alone, look for completions that ramble.",
    ),
    Metric("length/max", "tokens", "max of T", "At most rollout.max_new_tokens."),
    Metric(
        "length/truncated", "share", "finish reason length / rollouts", "Cut by rollout.max_new_tokens.", (None, 0.1)
    ),
    Metric("finish/stop", "share", "finish reason stop / rollouts", "Ended by the policy itself."),
    Metric("finish/abort", "share", "finish reason abort / rollouts", "Interrupted.", (None, 0.0)),
    Metric(
        "finish/repetition",
        "share",
        "finish reason repetition / rollouts",
        "Ended because the text repeats itself.",
        (None, 0.05),
    ),
)

_LEARNER = (
    Metric("groups/total", "groups", "P", "Groups sampled."),
    Metric("groups/trained", "groups", "groups left by algorithm.filter", "Groups that the update sees.", (1.0, None)),
    Metric("groups/extra", "groups", "groups/total - P", "Sampled beyond P by algorithm.filter: refill."),
    Metric(
        "groups/missing",
        "groups",
        "P - groups/trained",
        "What the update lacks; under refill the bound max_extra was reached.",
    ),
    Metric("groups/all_correct", "groups", "groups whose judged completions are all right", "Too easy by now."),
    Metric("groups/none_correct", "groups", "groups whose judged completions are all wrong", "Too hard as yet."),
    Metric(
        "groups/zero_variance",
        "groups",
        "groups of 2 or more scored completions with equal rewards",
        "Nothing to compare.",
    ),
    Metric(
        "groups/too_few_scored",
        "groups",
        "groups with fewer scored completions than the baseline needs",
        "Not trained.",
        (None, 0.0),
    ),
    Metric(
        "greedy/reward", "reward", "mean of r over greedy completions", "What baseline: greedy compares with, unshaped."
    ),
    Metric("sampler/epoch", "epochs", "", "Passes over the training problems; prioritised: draws / problems."),
    Metric(
        "sampler/seen",
        "problems",
        "problems with a scored completion",
        "Whose success rates the sampler knows, where problems.sampler goes by them.",
    ),
    Metric(
        "sampler/success_rate",
        "share",
        "mean over sampler/seen of discounted successes / completions",
        "By problems.sampler.success and .memory.",
    ),
    Metric("sampler/rested", "problems", "", "Left out for problems.sampler.rest.epochs."),
    Metric("sampler/retired", "problems", "", "Reached problems.sampler.retire_at, never drawn again."),
    Metric("samples/trained", "completions", "completions with at least one trained token", "What the update sees."),
    Metric("samples/unscored", "completions", "rollouts without reward", "Left out of the baseline and of the loss."),
    Metric(
        "samples/truncated_masked",
        "completions",
        "truncated completions under algorithm.truncated: mask",
        "In the baseline, not in the loss.",
    ),
    Metric("advantage/abs_mean", "", "mean |A|", "0 means that the step teaches nothing.", (1e-6, None)),
    Metric("advantage/abs_max", "", "max |A|", "A rare completion in a large group has a large one.", (None, 10.0)),
    Metric(
        "staleness/mean",
        "versions",
        "mean over trained tokens of (policy's version - token's version)",
        "0 is on-policy; each version is one step.",
    ),
    Metric("staleness/max", "versions", "", "Never above the schedule's bound."),
    Metric("staleness/masked", "tokens", "", "Tokens past the bound, which on_stale: mask did not train."),
    Metric(
        "rollouts/several_versions",
        "share",
        "rollouts with tokens of more than one version / rollouts",
        "Completions that lived through an update of the weights.",
    ),
    Metric("buffer/unfinished", "groups", "", "Groups left with completions to be continued."),
    Metric("buffer/finished", "groups", "", "Groups left that are finished and not trained yet."),
    Metric("buffer/tokens", "tokens", "", "Tokens of the groups left."),
    Metric("buffer/oldest", "versions", "", "Age of the oldest token that is left, or of the oldest to come."),
    Metric(
        "buffer/dropped_stale",
        "groups",
        "",
        "Thrown away because their tokens passed the bound on age; with on_stale: wait there are none.",
        (None, 0.0),
    ),
    Metric("tokens/dropped", "tokens", "", "Tokens of the groups thrown away."),
    Metric(
        "tokens/generated",
        "tokens",
        "sum of loss masks over rollouts",
        "Sampled by the policy, greedy completions too.",
    ),
    Metric(
        "tokens/prompt", "tokens", "sum of prompt lengths over rollouts", "Each prompt counts once for each completion."
    ),
    Metric(
        "tokens/trained",
        "tokens",
        "sum of loss masks over samples",
        "In the loss; far below tokens/generated is waste.",
    ),
    Metric(
        "tokens/generated_per_trained",
        "",
        "tokens/generated / tokens/trained",
        "What a trained token costs: dropped, refilled, masked and greedy completions.",
        (None, 4.0),
    ),
    Metric("tokens/given", "tokens", "", "Of given completions in the loss (algorithm.given_text)."),
    Metric(
        "tokens/computed", "tokens", "positions of all micro-batches", "What one forward pass over the batch costs."
    ),
    Metric("tokens/padding_share", "share", "empty positions / positions", "Wasted computing.", (None, 0.3)),
    Metric("update/lr", "", "", "Learning rate of the step's last optimiser step."),
    Metric(
        "update/loss",
        "",
        "mean over optimiser steps",
        "Its sign and size say little in policy gradients; watch reward.",
    ),
    Metric("update/grad_norm", "", "mean over optimiser steps, before clipping", "Jumps by 10 before most collapses."),
    Metric(
        "update/grad_norm_max",
        "",
        "max over optimiser steps, before clipping",
        "One bad share of the batch shows here first.",
    ),
    Metric("update/count", "steps", "", "Optimiser steps taken.", (1.0, None)),
    Metric("update/empty", "steps", "", "Optimiser steps left out because no token was trained.", (None, 0.0)),
    Metric("update/reference_moved", "", "1 or 0", "Whether the reference followed the policy after this step."),
    Metric("update/non_finite", "steps", "", "Optimiser steps left out under learner.non_finite: skip.", (None, 0.0)),
    Metric("update/micro_batches", "", "", "Forward and backward passes of an epoch, over all ranks."),
    Metric(
        "update/over_limit",
        "completions",
        "",
        "Longer than learner.micro_batch_tokens: each in a pass of its own.",
        (None, 0.0),
    ),
    Metric(
        "policy/entropy",
        "nats",
        "mean over trained tokens of -sum p log p",
        "Falling to 0 ends exploration.",
        (0.02, None),
    ),
    Metric(
        "policy/ratio_max",
        "",
        "max pi_theta / pi_old",
        "Above the clip bounds only with several updates a batch.",
        (None, 10.0),
    ),
    Metric(
        "policy/ratio_limited",
        "share",
        "tokens with |log ratio| > 20",
        "Their ratio is taken at 20, without gradient: completions too far off for ratio.type: sequence_product.",
        (None, 0.0),
    ),
    Metric("policy/clip_fraction", "share", "clipped tokens / trained tokens", "Tokens at a bound.", (None, 0.2)),
    Metric("policy/clip_low", "share", "tokens / trained tokens", "At the surrogate's lower bound.", (None, 0.1)),
    Metric("policy/clip_high", "share", "", "At the surrogate's upper bound, dual clip included.", (None, 0.1)),
    Metric(
        "policy/off_policy_masked",
        "share",
        "",
        "Tokens of completions that algorithm.off_policy_mask takes out of the loss.",
        (None, 0.2),
    ),
    Metric("policy/top_entropy", "share", "", "Tokens that algorithm.top_entropy keeps."),
    Metric("policy/covariant", "share", "", "Tokens that surrogate clip_cov or kl_cov treats apart."),
    Metric("policy/entropy_coefficient", "", "", "What multiplied the entropy in the loss (algorithm.entropy)."),
    Metric(
        "policy/positive_nll",
        "nats",
        "mean of -log pi_theta over tokens with a positive advantage",
        "The term of algorithm.positive_nll, before its weight.",
    ),
    Metric(
        "policy/text_nll",
        "nats",
        "mean of -log pi_theta over the tokens of given completions",
        "The term of algorithm.given_text, before its weight.",
    ),
    Metric("policy/kl", "nats", "mean over trained tokens of k3(pi_theta, pi_ref)", "Distance from the reference."),
    Metric(
        "policy/kl_in_reward",
        "reward",
        "mean over trained tokens of coefficient * sum of KL to go",
        "What kl.place: reward takes from the advantages.",
    ),
    Metric(
        "policy/teacher_kl",
        "nats",
        "mean over trained tokens of log pi_old - log pi_teacher",
        "Estimate of KL(pi || pi_teacher), which algorithm.distillation lowers.",
    ),
    Metric(
        "mismatch/abs",
        "nats",
        "mean |log pi_old - log mu|",
        "Engine against learner; 1e-5 in float32, 0.03 in bfloat16.",
        (None, 0.1),
    ),
    Metric("mismatch/kl", "nats", "mean of k3(pi_old, mu)", "Grows when the engine is stale.", (None, 0.01)),
    Metric("mismatch/ratio_max", "", "max pi_old / mu", "One token can spoil an uncorrected step.", (None, 10.0)),
    Metric(
        "mismatch/ess", "share", "(sum rho)^2 / (n sum rho^2), rho = pi_old / mu", "Effective sample size.", (0.9, None)
    ),
    Metric("mismatch/truncated", "share", "tokens with rho above the cap", "Under correction: truncate.", (None, 0.05)),
    Metric(
        "mismatch/masked", "share", "tokens with rho out of bounds", "Under correction: mask or reject.", (None, 0.05)
    ),
    Metric(
        "update/flops",
        "operations",
        "sum of 6 N a token, head where trained; 4 N for frozen weights; times epochs",
        "Arithmetic that the update needs, without padding, recomputing and attention; not for mixtures of experts.",
    ),
    Metric(
        "mfu/update",
        "share",
        "update/flops / (time/forward_backward * peak)",
        "Model FLOPs utilisation of the learner (Chowdhery et al. 2022); peak is run.peak_tflops of all devices.",
        is_measured=True,
    ),
    Metric("mfu/step", "share", "update/flops / (time/step * peak)", "The same over the whole step.", is_measured=True),
    Metric(
        "tokens/per_second", "tokens/s", "tokens/generated / time/step", "Speed of the whole run.", is_measured=True
    ),
    Metric(
        "tokens/generated_per_second",
        "tokens/s",
        "tokens/generated / time/beside/sampling",
        "Speed of the engine.",
        is_measured=True,
    ),
)

_EVAL = (
    Metric(
        "eval/{name}/pass@{k}",
        "share",
        "mean over problems of 1 - C(n-c,k)/C(n,k)",
        "Chance that k completions hold a right one (Chen et al. 2021).",
    ),
    Metric(
        "eval/{name}/maj@{k}",
        "share",
        "mean over problems and k-subsets of [majority is right]",
        "Exact; ties by lot; completions without an answer do not vote.",
    ),
    Metric("eval/{name}/avg@{k}", "share", "mean over problems of c/n", "Mean accuracy with n completions a problem."),
    Metric(
        "eval/{name}/reward",
        "reward",
        "mean over problems of the mean reward of their scored completions",
        "Before shaping; partial marks count, which pass@k and avg@k leave out.",
    ),
    *(
        Metric(
            f"eval/{{name}}/reward_{end}",
            "reward",
            f"{word} end of Wilson's interval, on the scale of the rewards",
            "95 % confidence, counting problems, not completions.",
        )
        for end, word in (("low", "lower"), ("high", "upper"))
    ),
    *(
        Metric(
            f"eval/{{name}}/{measure}@{{k}}_{end}",
            "share",
            f"{word} end of Wilson's interval",
            "95 % confidence, counting problems, not completions.",
        )
        for measure in ("pass", "maj", "avg")
        for end, word in (("low", "lower"), ("high", "upper"))
    ),
    Metric(
        "eval/{name}/greedy",
        "share",
        "mean over problems of [greedy completion is right]",
        "At temperature 0. Where only pass@1 rises, training made the policy surer of what it thought best before.",
    ),
    *(
        Metric(
            f"eval/{{name}}/greedy_{end}",
            "share",
            f"{word} end of Wilson's interval",
            "95 % confidence, counting problems, not completions.",
        )
        for end, word in (("low", "lower"), ("high", "upper"))
    ),
    Metric("eval/{name}/problems", "problems", "", "Problems of the set."),
    Metric("eval/{name}/samples", "completions", "", "Completions sampled."),
    Metric(
        "eval/{name}/unscored",
        "share",
        "completions not judged / completions",
        "Left out of the estimates.",
        (None, 0.0),
    ),
    Metric(
        "eval/{name}/short",
        "share",
        "problems with fewer than max(k) judged completions / problems",
        "Left out of the estimates for larger k.",
        (None, 0.0),
    ),
    Metric(
        "eval/{name}/truncated", "share", "finish reason length / completions", "Cut by max_new_tokens.", (None, 0.1)
    ),
    Metric("eval/{name}/no_answer", "share", "outcome NO_ANSWER / completions", "No answer in the text.", (None, 0.5)),
    Metric("eval/{name}/length", "tokens", "mean of T", "Tokens a completion."),
)

_SYNC = (
    Metric("sync/mismatch", "nats", "mean |engine - learner| over the probe's tokens", "The probe: prompts whose "
           "log-probabilities both compute after each sync. Rounding; in float32 near 0.", (None, 0.2)),
    Metric("sync/learner_change", "nats", "root mean square over the probe's tokens", "How far the learner moved "
           "since the one of the last 64 syncs from which it has moved most."),
    Metric("sync/followed", "", "slope of the engine's change over the learner's", "1: the engine has the learner's "
           "weights; 0: it is stale, which stops the run. Logged once the change stands out of rounding.", (0.5, 2.0)),
)  # fmt: skip

_COST = (
    Metric("time/step", "s", "", "Wall clock of the step, from the end of the one before.", is_measured=True),
    *(
        Metric(f"time/{phase}", "s", "", meaning, healthy, is_measured=True)
        for phase, meaning, healthy in (
            ("generate", "Sampling.", None),
            ("grade_wait", "Waiting for graders after the last token was sampled.", None),
            ("pack", "Advantages and micro-batches.", None),
            ("old_logprobs", "Log-probabilities before the first update.", None),
            ("ref_logprobs", "Log-probabilities of the reference model.", None),
            ("teacher_logprobs", "Log-probabilities of the teacher.", None),
            ("forward_backward", "Loss and gradients.", None),
            ("optimizer", "Clipping and stepping.", None),
            ("sync", "New weights to the engine, and the proof that it uses them.", None),
            ("eval", "Evaluations.", None),
            ("checkpoint", "Checkpoints.", None),
            ("log", "Log files, console and trackers; the lines of a step count in the next.", None),
            ("idle", "Everything else: time/step minus all phases.", None),
        )
    ),
    Metric(
        "time/beside/grade",
        "s",
        "sum over rollouts of grading time",
        "Runs beside sampling, not part of the sum.",
        is_measured=True,
    ),
    Metric(
        "time/beside/sampling",
        "s",
        "time with a request in the engine",
        "Since the step before; in an overlapping schedule it exceeds time/generate, and the rest of the step is the "
        "engine's idle time.",
        is_measured=True,
    ),
    Metric(
        "engine/tokens_per_second/{size}",
        "tokens/s",
        "tokens / seconds of steps with size to 2 size - 1 requests",
        "vLLM's speed by how many requests run, under engine.stats; prompts and the sync's probe count in the time.",
        is_measured=True,
    ),
    Metric(
        "engine/share/{server}",
        "share",
        "tokens of this server / all",
        "Of the tokens sampled since the step before, for engines on several devices, in order, after those of urls. 0 "
        "is a server that was away.",
        (0.0, 1.0),
        is_measured=True,
    ),
    Metric(
        "engine/acceptance_rate",
        "share",
        "accepted / proposed tokens",
        "Under engine.speculative; falls as the policy moves away from a drafter that does not learn.",
        is_measured=True,
    ),
    Metric(
        "engine/acceptance_length",
        "tokens",
        "1 + accepted tokens / proposals",
        "Tokens that one step of the engine gives a request; what speculation can win at most.",
        is_measured=True,
    ),
    Metric("time/grade_max", "s", "", "Longest wait of one rollout for its verdicts.", is_measured=True),
    Metric("memory/peak", "GiB", "", "Peak resident memory of the main process so far.", is_measured=True),
    Metric("memory/gpu_peak", "GiB", "", "Peak memory of its GPU that torch gave out so far.", is_measured=True),
    Metric("warnings/{name}", "times", "", "How often this warning came up since the run began.", (None, 0.0)),
)

SECTIONS: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    ("Rewards and rollouts", _ROLLOUTS),
    ("Learner", _LEARNER),
    ("Evaluation", _EVAL),
    ("Weights to the engine", _SYNC),
    ("Cost", _COST),
)


def find(key: str) -> Metric | None:
    """The row of a logged key; an exact one goes before a pattern. None if the glossary does not know it."""
    exact, patterns = _index()
    return exact.get(key) or next((metric for pattern, metric in patterns if pattern.fullmatch(key)), None)


def section_of(metric: Metric) -> str:
    """The title of the section that holds a row."""
    return next(title for title, metrics in SECTIONS if metric in metrics)


def undocumented(keys: Iterable[str]) -> list[str]:
    """The keys that the glossary does not know."""
    return [key for key in keys if find(key) is None]


def unlogged(keys: Iterable[str]) -> list[str]:
    """The rows of the glossary that none of the keys belongs to."""
    seen = {metric.key for key in keys if (metric := find(key)) is not None}
    return [metric.key for _, metrics in SECTIONS for metric in metrics if metric.key not in seen]


def reproducible(metrics: dict[str, float]) -> dict[str, float]:
    """Without times, rates and memory: what two runs of one recipe must have in common."""
    return {key: value for key, value in metrics.items() if (metric := find(key)) is None or not metric.is_measured}


def markdown() -> str:
    """The glossary as a page."""
    lines = [
        "# Metrics",
        "",
        "Every number of `metrics.jsonl`; this page is made by `python -m rlvr.runlog.glossary > docs/metrics.md`. A",
        "quantity that is not defined in a step (the standard error of one group) has no key in its line. P problems,",
        "G completions to each, T tokens of a completion, N scored rollouts; `{name}` is a reward term, an eval set or "
        "a warning, `{k}` a number.",
    ]
    for title, metrics in SECTIONS:
        lines += ["", f"## {title}", "", "| key | unit | formula | meaning | healthy |", "|---|---|---|---|---|"]
        for metric in metrics:
            cells = (f"`{metric.key}`", metric.unit, metric.formula, metric.meaning, _range(metric.healthy))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        "## Thresholds of the doctor",
        "",
        "The values at which the rules of `docs/doctor.md` fire, unless that is the end of a healthy range above",
        "(`rlvr.runlog.thresholds`).",
        "",
        "| threshold | value | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| `{threshold.name}` | {threshold.value:g} | {threshold.meaning} |" for threshold in THRESHOLDS]
    return "\n".join(lines) + "\n"


def _range(healthy: tuple[float | None, float | None] | None) -> str:
    if healthy is None:
        return ""
    low, high = healthy
    return " and ".join(
        part
        for part in (f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else "")
        if part
    )


@cache
def _index() -> tuple[dict[str, Metric], list[tuple[re.Pattern[str], Metric]]]:
    every = [metric for _, metrics in SECTIONS for metric in metrics]
    exact = {metric.key: metric for metric in every if "{" not in metric.key}
    patterns = [(_pattern(metric.key), metric) for metric in every if "{" in metric.key]
    return exact, patterns


def _pattern(key: str) -> re.Pattern[str]:
    text = re.escape(key).replace(r"\{k\}", r"\d+")
    return re.compile(re.sub(r"\\\{\w+\\\}", r"[\\w.-]+", text))


if __name__ == "__main__":  # python -m rlvr.runlog.glossary > docs/metrics.md
    print(markdown(), end="")
