"""Rules over a few sampled and graded groups: what the policy writes before training."""

from __future__ import annotations

import difflib
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rewards import Outcome
from rlvr.config import Recipe
from rlvr.config.groups import OUTSIDE_THE_GROUP
from rlvr.problems.templates import TURN_ENDS, Renderer
from rlvr.records import Rollout, RolloutGroup
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.preflight_settings import rewards_teach
from rlvr.rules.rule import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_ALL, CUT_OFTEN = 0.9, 0.4
"""Shares of completions that hit the token limit: practically all; so many without success that the limit is in the
way."""
EVIDENCE = 32
"""Completions from which 'none' says something."""
MIXED = 0.25
"""Share of groups with right and wrong completions below which most of a step's work is for nothing."""
NO_FORM = 0.9
ALIKE_ALL, ALIKE_OFTEN = 0.95, 0.6
EMPTY_ALL, EMPTY_OFTEN = 0.95, 0.3
RUNS_THROUGH = 0.2

ALL_CUT = Rule(
    "all_truncated", Grade.STOPS,
    f"at least {CUT_ALL:.0%} of the completions end at `rollout.max_new_tokens`; slows learning where some are right",
    "raise rollout.max_new_tokens, or, where the completions are long finished by then, set template.stop to what they "
    "end with",
)  # fmt: skip
OFTEN_CUT = Rule(
    "often_truncated", Grade.SLOWS,
    f"at least {CUT_OFTEN:.0%} of the completions are cut at the limit and not right; a note where at least "
    f"{MIXED:.0%} of the groups are expected to have different rewards: a policy that is compared learns to be brief",
    "raise rollout.max_new_tokens, or set template.stop to what completions end with",
)  # fmt: skip
STOP_UNSEEN = Rule(
    "stop_never_appears", Grade.SLOWS,
    "no completion holds a string of `template.stop`; a note where most completions end by themselves",
    "set template.stop to what the completions end with: read them by `rlvr generate RECIPE --output FILE`",
)  # fmt: skip
END_IGNORED = Rule(
    "end_token_ignored", Grade.SLOWS,
    f"at least {RUNS_THROUGH:.0%} of the completions continue after a special token that ends turns, texts or "
    "sequences",
    "make it an eos_token_id of generation_config.json in the model's folder, so that it ends a completion",
)  # fmt: skip
EMPTY = Rule(
    "completions_empty", Grade.STOPS,
    f"at least {EMPTY_ALL:.0%} of the completions have no text; from {EMPTY_OFTEN:.0%} on it slows learning",
    "look at the end of the prompt: a template that ends with the end of a turn, or with a stop string, leaves nothing "
    "to say",
)  # fmt: skip
ALIKE = Rule(
    "completions_identical", Grade.STOPS,
    f"in at least {ALIKE_ALL:.0%} of the groups all completions have the same tokens; from {ALIKE_OFTEN:.0%} on it "
    "slows learning",
    "raise rollout.temperature to 1.0; if it is, the policy is certain already and has nothing left to try",
)  # fmt: skip
ALL_RIGHT = Rule(
    "all_right", Grade.STOPS, f"all completions, {EVIDENCE} or more, get full marks; from 95 % on it slows learning",
    "take harder problems, or a verifier that demands more: there is nothing to learn",
)  # fmt: skip
NONE_RIGHT = Rule(
    "none_right", Grade.STOPS,
    f"all completions, {EVIDENCE} or more, get the same reward and none full marks; with fewer completions, or where "
    "only later terms tell them apart, it slows learning",
    "take easier problems or a better base model, fine-tune on solutions first (`rlvr sft`), or give partial credit",
)  # fmt: skip
TOO_SMALL = Rule(
    "group_too_small", Grade.SLOWS,
    f"fewer than {MIXED:.0%} of the groups are expected to have different rewards at `rollout.group_size`, and at "
    "least twice as many would at four times that size",
    "raise rollout.group_size, at the cost of prompts_per_step",
)  # fmt: skip
FEW_MIXED = Rule(
    "few_groups_teach", Grade.SLOWS,
    f"fewer than {MIXED:.0%} of the groups are expected to have different rewards, and larger groups would hardly help",
    "choose problems that the policy solves sometimes: leave out those that it never or always solves, or use "
    "algorithm.filter: {type: refill}",
)  # fmt: skip
NO_FORMAT = Rule(
    "format_never_right", Grade.STOPS,
    "a reward term calls all completions NO_ANSWER, UNREADABLE or BAD_FORMAT; slows learning from "
    f"{NO_FORM:.0%} on, and where other terms tell completions apart",
    "read the completions beside what the verifier asks for: template, prefill, stop strings and the verifier's "
    "arguments have to agree; a base model may need `rlvr sft` on a few examples",
)  # fmt: skip
PREFILL_TWICE = Rule(
    "prefill_repeated", Grade.SLOWS, "at least half of the completions write the prefill once more",
    "leave template.prefill out (or use r1_zero for r1_zero_think): this model begins so by itself",
)  # fmt: skip
UNSCORED = Rule(
    "completions_unscored", Grade.STOPS,
    "more completions than `rewards.max_unscored` allows could not be scored: the run would stop; a note below",
    "correct the verifier or its machinery: the message shows its error",
)  # fmt: skip
GRADER_DIES = Rule(
    "grading_times_out", Grade.SLOWS, "at least 5 % of the gradings are killed by time limit or memory",
    "raise rewards.timeout or rewards.memory_mb, or make the verifier give up by itself",
)  # fmt: skip

SAMPLED_RULES = (
    ALL_CUT, OFTEN_CUT, STOP_UNSEEN, END_IGNORED, EMPTY, ALIKE, ALL_RIGHT, NONE_RIGHT, TOO_SMALL, FEW_MIXED, NO_FORMAT,
    PREFILL_TWICE, UNSCORED, GRADER_DIES,
)  # fmt: skip

_FORMLESS = (Outcome.NO_ANSWER, Outcome.UNREADABLE, Outcome.BAD_FORMAT)


def completions_wanted(group_size: int) -> int:
    """Completions to each problem from which the variance of a group of `group_size` is estimated."""
    return max(group_size, min(2 * group_size, 16), 8)


def mixed_share(rewards: Sequence[float], size: int) -> float:
    """Probability that `size` of n completions, drawn without replacement, do not all have one reward.

    Exact: 1 - sum_v C(n_v, size) / C(n, size) over the different rewards v; unbiased for the probability of a group of
    that size (a U-statistic, Hoeffding 1948). With fewer than `size` completions, draws are with replacement.
    """
    n = len(rewards)
    if n == 0 or size < 2:
        return 0.0
    counts = Counter(round(reward, 9) for reward in rewards).values()
    if n >= size:
        return 1.0 - sum(math.comb(count, size) for count in counts) / math.comb(n, size)
    return 1.0 - sum((count / n) ** size for count in counts)


def expected_mixed(groups: Sequence[RolloutGroup], size: int) -> float:
    """Share of groups of `size` completions that have different rewards, from larger or equal groups."""
    rewards = [[reward for reward in group.rewards_G if reward is not None] for group in groups]
    return statistics.fmean([mixed_share(rewards_G, size) for rewards_G in rewards if rewards_G] or [0.0])


def pass_rate(groups: Sequence[RolloutGroup]) -> float | None:
    """Share of the judged completions with full marks of the first term; None if none was judged."""
    judged = [right for group in groups for rollout in group.rollouts if (right := rollout.is_correct) is not None]
    return statistics.fmean(judged) if judged else None


def check_sampled(
    recipe: Recipe, groups: Sequence[RolloutGroup], renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    """Findings over the completions of a few groups, each of `completions_wanted` completions."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    yield from _ends(recipe, groups, rollouts, renderer)
    yield from _tokens(groups, rollouts, renderer, tokenizer)
    yield from _machinery(recipe, rollouts)
    if rewards_teach(recipe):
        yield from _rewards(recipe, groups, rollouts)
        yield from _forms(recipe, rollouts)
    prefill = renderer.render(groups[0].problem).prefill.strip()
    twice = [rollout for rollout in rollouts if prefill and _sampled(rollout, prefill).lstrip().startswith(prefill)]
    if prefill and len(twice) >= len(rollouts) / 2:
        yield PREFILL_TWICE.finding(
            f"{_of(twice, rollouts)} completions begin with {prefill!r} though the template has written it",
            evidence=shown(twice),
        )


def _sampled(rollout: Rollout, prefill: str) -> str:
    """The text after the prefill, with which the text of a rollout begins."""
    return rollout.text.partition(prefill)[2]


def _of(part: Sequence[object], whole: Sequence[object]) -> str:
    return f"{len(part)} of {len(whole)}"


def shown(rollouts: Sequence[Rollout], count: int = 2) -> list[str]:
    """The first completions in short: problem, how it ended, beginning and end."""
    lines = []
    for rollout in rollouts[:count]:
        text = rollout.text if len(rollout.text) <= 160 else f"{rollout.text[:90]} [...] {rollout.text[-60:]}"
        outcomes = ", ".join(f"{name} {verdict.outcome.value}" for name, verdict in rollout.verdicts.items())
        lines.append(
            f"{rollout.problem_id}/{rollout.sample_index} ({len(rollout.ids)} tokens, {rollout.finish_reason}, "
            f"{outcomes}): {text!r}"
        )
    return lines


def _ends(
    recipe: Recipe, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout], renderer: Renderer
) -> Iterator[Finding]:
    limit = recipe.rollout.max_new_tokens
    cut = [rollout for rollout in rollouts if rollout.is_truncated]
    lost = [rollout for rollout in cut if rollout.is_correct is not True]
    if len(cut) >= CUT_ALL * len(rollouts):
        some_right = len(lost) < len(cut) and recipe.algorithm.truncated == "train"
        yield ALL_CUT.finding(
            f"{_of(cut, rollouts)} completions are cut at rollout.max_new_tokens = {limit}",
            evidence=shown(cut), grade=Grade.SLOWS if some_right else Grade.STOPS,
        )  # fmt: skip
    elif len(lost) >= CUT_OFTEN * len(rollouts):
        learns = expected_mixed(groups, recipe.rollout.group_size) >= MIXED
        yield OFTEN_CUT.finding(
            f"{_of(lost, rollouts)} completions are cut at rollout.max_new_tokens = {limit} without being right",
            evidence=shown(lost), grade=Grade.NOTE if learns else Grade.SLOWS,
        )  # fmt: skip
    unseen = [stop for stop in renderer.stop if not any(stop in rollout.text for rollout in rollouts)]
    # completions that are cut before they say anything are too short for a stop string, not without one
    finished = [
        rollout for rollout in cut if any(verdict.outcome not in _FORMLESS for verdict in rollout.verdicts.values())
    ]
    if renderer.stop and len(unseen) == len(renderer.stop) and (finished or len(cut) < CUT_ALL * len(rollouts)):
        often = len(cut) >= len(rollouts) / 2
        yield STOP_UNSEEN.finding(
            f"none of {len(rollouts)} completions holds {' or '.join(map(repr, unseen))}"
            + (_instead(unseen, rollouts) or ("" if often else "; they end by a token")),
            evidence=shown(cut if often else rollouts),
            grade=Grade.SLOWS if often or _instead(unseen, rollouts) else Grade.NOTE,
        )


def _instead(stops: Sequence[str], rollouts: Sequence[Rollout]) -> str:
    """A tag like one of the stop strings that a part of the completions holds."""
    for tag in ("</answer>", "</think>", "</solution>", *TURN_ENDS):
        holding = [rollout for rollout in rollouts if tag in rollout.text]
        if len(holding) >= 0.1 * len(rollouts) and any(
            difflib.SequenceMatcher(None, stop.strip().lower(), tag).ratio() >= 0.6 for stop in stops
        ):
            return f"; {_of(holding, rollouts)} hold {tag!r}"
    return ""


def _tokens(
    groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout], renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    names = {*tokenizer.all_special_tokens, *(end for end in TURN_ENDS if end in tokenizer.get_vocab())}
    begins = (tokenizer.bos_token, tokenizer.unk_token)
    ending = {tokenizer.convert_tokens_to_ids(name): name for name in names if name not in begins}
    passed = [(rollout, [token for token in rollout.ids[:-1] if token in ending]) for rollout in rollouts]
    passed = [(rollout, tokens) for rollout, tokens in passed if tokens]
    if len(passed) >= RUNS_THROUGH * len(rollouts):
        name, _ = Counter(ending[tokens[0]] for _, tokens in passed).most_common(1)[0]
        yield END_IGNORED.finding(
            f"{_of(passed, rollouts)} completions continue after {name!r}, which ends none",
            evidence=shown([rollout for rollout, _ in passed]),
        )
    prefill = renderer.render(groups[0].problem).prefill
    empty = [rollout for rollout in rollouts if not _behind(rollout.text, prefill).strip()]
    if len(empty) >= EMPTY_OFTEN * len(rollouts):
        yield EMPTY.finding(
            f"{_of(empty, rollouts)} completions have no text",
            evidence=shown(empty), grade=Grade.STOPS if len(empty) >= EMPTY_ALL * len(rollouts) else Grade.SLOWS,
        )  # fmt: skip
    groups = [group for group in groups if len(group.rollouts) > 1]
    alike = [group for group in groups if len({rollout.ids for rollout in group.rollouts}) == 1]
    if groups and len(alike) >= ALIKE_OFTEN * len(groups) and len(empty) < len(rollouts):
        yield ALIKE.finding(
            f"in {_of(alike, groups)} groups all {len(alike[0].rollouts)} completions are the same",
            evidence=shown([group.rollouts[0] for group in alike]),
            grade=Grade.STOPS if len(alike) >= ALIKE_ALL * len(groups) else Grade.SLOWS,
        )


def _behind(text: str, prefill: str) -> str:
    return text[len(prefill) :] if text.startswith(prefill) else text


def _machinery(recipe: Recipe, rollouts: Sequence[Rollout]) -> Iterator[Finding]:
    unscored = [rollout for rollout in rollouts if rollout.reward is None]
    if unscored:
        verdict = next(verdict for verdict in unscored[0].verdicts.values() if not verdict.outcome.is_scored)
        too_many = len(unscored) > recipe.rewards.max_unscored * len(rollouts)
        yield UNSCORED.finding(
            f"{_of(unscored, rollouts)} completions could not be scored, rewards.max_unscored allows "
            f"{recipe.rewards.max_unscored:.0%}",
            evidence=[str(verdict.detail.get("error", dict(verdict.detail)))[-300:]],
            grade=Grade.STOPS if too_many else Grade.NOTE,
        )
    for name in {name: None for rollout in rollouts for name in rollout.verdicts}:
        verdicts = [rollout.verdicts[name] for rollout in rollouts if name in rollout.verdicts]
        dead = [verdict for verdict in verdicts if verdict.outcome in (Outcome.TIMEOUT, Outcome.CRASHED)]
        if len(dead) >= 0.05 * len(verdicts):
            outcomes = ", ".join(
                f"{count} {outcome}" for outcome, count in Counter(verdict.outcome.value for verdict in dead).items()
            )
            yield GRADER_DIES.finding(
                f"reward term {name!r}: {_of(dead, verdicts)} gradings were killed ({outcomes}) at rewards.timeout = "
                f"{recipe.rewards.timeout:g} s, rewards.memory_mb = {recipe.rewards.memory_mb}"
            )


def _rewards(recipe: Recipe, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> Iterator[Finding]:
    size = recipe.rollout.group_size
    rewards = {round(rollout.reward, 9) for rollout in rollouts if rollout.reward is not None}
    rate = pass_rate(groups)
    if not rewards or rate is None:
        return
    enough = len(rollouts) >= EVIDENCE
    if rate >= 0.95:
        constant = len(rewards) == 1
        yield ALL_RIGHT.finding(
            f"{rate:.0%} of {len(rollouts)} completions get full marks", evidence=shown(rollouts),
            grade=Grade.STOPS if constant and enough else Grade.SLOWS,
        )  # fmt: skip
        if constant:
            return
    elif len(rewards) == 1:
        yield NONE_RIGHT.finding(
            f"all {len(rollouts)} completions get reward {rewards.pop():g}, {rate:.0%} of them full marks",
            evidence=shown(rollouts), grade=Grade.STOPS if enough else Grade.SLOWS,
        )  # fmt: skip
        return
    elif rate == 0.0 and enough and len(_first_scores(rollouts)) == 1:
        yield NONE_RIGHT.finding(
            f"none of {len(rollouts)} completions gets full marks or a part of them from "
            f"{recipe.rewards.terms[0].name!r}; only other terms tell completions apart",
            evidence=shown(rollouts), grade=Grade.SLOWS,
        )  # fmt: skip
    if isinstance(recipe.algorithm.baseline, OUTSIDE_THE_GROUP):
        return
    now = expected_mixed(groups, size)
    if now >= MIXED:
        return
    larger = expected_mixed(groups, 4 * size)
    numbers = f"{now:.0%} of the groups of {size} are expected to have different rewards (pass rate {rate:.0%})"
    if larger >= 2 * now and larger >= MIXED:
        yield TOO_SMALL.finding(
            f"{numbers}, {larger:.0%} of groups of {4 * size}",
            advice=f"raise rollout.group_size = {size} to {4 * size} or so, at the cost of prompts_per_step",
        )
    else:
        yield FEW_MIXED.finding(numbers)


def _first_scores(rollouts: Sequence[Rollout]) -> set[float]:
    """The different scores of the term that says whether an answer is right."""
    first = [next(iter(rollout.verdicts.values())) for rollout in rollouts if rollout.verdicts]
    return {verdict.score for verdict in first if verdict.score is not None}


def _forms(recipe: Recipe, rollouts: Sequence[Rollout]) -> Iterator[Finding]:
    rewards = {round(rollout.reward, 9) for rollout in rollouts if rollout.reward is not None}
    for term in recipe.rewards.terms:
        judged = [
            rollout
            for rollout in rollouts
            if term.name in rollout.verdicts and rollout.verdicts[term.name].outcome.is_scored
        ]
        bad = [rollout for rollout in judged if rollout.verdicts[term.name].outcome in _FORMLESS]
        if not judged or len(bad) < NO_FORM * len(judged):
            continue
        counts = Counter(rollout.verdicts[term.name].outcome.value for rollout in bad)
        reasons = Counter(str(rollout.verdicts[term.name].detail.get("reason", "")) for rollout in bad)
        reason = reasons.most_common(1)[0][0]
        stops = len(bad) == len(judged) and len(rewards) <= 1 and len(judged) >= EVIDENCE
        yield NO_FORMAT.finding(
            f"reward term {term.name!r} finds no answer it can read in {_of(bad, judged)} completions ("
            + ", ".join(f"{name} {count}" for name, count in counts.items())
            + (f"; mostly: {reason}" if reason else "") + ")",
            evidence=shown(bad), grade=Grade.STOPS if stops else Grade.SLOWS,
        )  # fmt: skip
