"""Rules over a run's latest completions: rewards the text does not earn, references that no completion can meet."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence

from rlvr.config import Recipe
from rlvr.doctor.examples import LoggedRollout, first_outcome, place, shown
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.rule import Rule
from rlvr.rules.suspects import (
    REASONED,
    REFERENCES,
    SHORT,
    high_reward,
    short_limits,
    unreasoned_limit,
    words_before_answer,
)
from rlvr.runlog.thresholds import at

_READ = "Read them by `rlvr view` (Suspects); if they are not worth their reward, make rewards.terms stricter: "
REPEATED = Rule(
    name="repeated_completion",
    grade=Grade.STOPS,
    fires=f"at least {at('suspect_share'):g} of the latest high-reward completions are texts that have it, to the "
    f"letter, under {REFERENCES} or more different references",
    advice=_READ + "one text cannot be right for different references.",
)
SHORT_COMPLETION = Rule(
    name="short_completion",
    grade=Grade.NOTE,
    fires=f"at least {at('suspect_share'):g} of the latest high-reward completions have at most {SHORT:g} of the "
    "median length of their step and the ten before",
    advice=_READ + "a format term, or a check of the reasoning.",
)
UNREASONED_ANSWER = Rule(
    name="unreasoned_answer",
    grade=Grade.NOTE,
    fires=f"at least {at('suspect_share'):g} of the latest high-reward completions begin with the answer, where the "
    f"median one has {REASONED} words or more before it",
    advice=_READ + "a format term that wants reasoning.",
)
UNITS = Rule(
    name="reference_format",
    grade=Grade.STOPS,
    fires=f"at least {at('suspect_share'):g} of the latest wrong completions end in the one number that their "
    "reference holds among other text",
    advice="The references have units or words that the verifier compares too: strip them in the data, or take a "
    "verifier that knows them.",
)
RULES = (UNITS, REPEATED, SHORT_COMPLETION, UNREASONED_ANSWER)
_EXPLAINS = {"reference_format": {"all_wrong", "no_variance", "no_progress", "constant_reward"},
             "repeated_completion": {"too_good_too_soon", "solved", "entropy_gone", "length_collapsing"}}  # fmt: skip
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def causes_of(findings: Sequence[Finding]) -> list[Finding]:
    """Without those that a finding of this module explains."""
    explained = {name for finding in findings for name in _EXPLAINS.get(finding.rule, ())}
    return [finding for finding in findings if finding.rule not in explained]


def look(rollouts: Sequence[LoggedRollout], recipe: Recipe) -> list[Finding]:
    """Findings over the completions of the latest steps; none if there are too few."""
    if not rollouts:
        return []
    first, last = rollouts[0]["step"], rollouts[-1]["step"]
    since = min(last - at("suspect_recent") * (last - first), last - at("steps") + 1)
    recent = [rollout for rollout in rollouts if rollout["step"] >= since and rollout["reward"] is not None]
    if last - first + 1 < at("steps") or len(recent) < at("completions"):
        return []
    findings = [_units(recent)]
    low, top = (
        min(rollout["reward"] for rollout in rollouts if rollout["reward"] is not None),
        max(rollout["reward"] for rollout in recent),
    )
    high = [rollout for rollout in recent if rollout["reward"] >= high_reward(low, top)]
    if low < top and len(high) >= at("completions") / 4:
        findings += [_repeated(high), _short(recent, high), _unreasoned(recent, high)]
    return [finding for finding in findings if finding is not None]


def _repeated(high: Sequence[LoggedRollout]) -> Finding | None:
    texts: dict[str, list[LoggedRollout]] = defaultdict(list)
    for rollout in high:
        texts[rollout["text"].strip()].append(rollout)
    groups = [
        same_text
        for same_text in texts.values()
        if len({str(rollout["reference"]) for rollout in same_text}) >= REFERENCES
    ]
    count = sum(map(len, groups))
    if count < at("suspect_share") * len(high):
        return None
    groups.sort(key=len, reverse=True)
    return REPEATED.finding(
        f"{count} of the latest {len(high)} completions with a high reward are {len(groups)} texts that have it under "
        f"{REFERENCES} or more different references",
        evidence=[f"{len(same_text)} times: {shown(same_text[-1])}, also " + ", ".join(map(place, same_text[-3:-1]))
                  for same_text in groups[:3]],
    )  # fmt: skip


def _short(recent: Sequence[LoggedRollout], high: Sequence[LoggedRollout]) -> Finding | None:
    lengths: dict[int, list[int]] = defaultdict(list)
    for rollout in recent:
        lengths[rollout["step"]].append(rollout["tokens"])
    limits = short_limits(lengths)
    short = [rollout for rollout in high if rollout["tokens"] <= limits[rollout["step"]]]
    if len(short) < max(at("steps"), at("suspect_share") * len(high)):
        return None
    return SHORT_COMPLETION.finding(
        f"{len(short)} of the latest {len(high)} completions with a high reward are far shorter than others of "
        "their time",
        evidence=[shown(rollout) for rollout in short[-3:]],
    )


def _unreasoned(recent: Sequence[LoggedRollout], high: Sequence[LoggedRollout]) -> Finding | None:
    words = {id(rollout): words_before_answer(rollout["text"]) for rollout in recent}
    known = [count for count in words.values() if count is not None]
    limit = unreasoned_limit(statistics.median(known)) if known else None
    if limit is None:
        return None
    hasty = [rollout for rollout in high if (count := words[id(rollout)]) is not None and count <= limit]
    if len(hasty) < max(at("steps"), at("suspect_share") * len(high)):
        return None
    return UNREASONED_ANSWER.finding(
        f"{len(hasty)} of the latest {len(high)} completions with a high reward give the answer at once, unlike the "
        "median one",
        evidence=[shown(rollout) for rollout in hasty[-3:]],
    )


def _units(recent: Sequence[LoggedRollout]) -> Finding | None:
    wrong = [rollout for rollout in recent if first_outcome(rollout) in ("WRONG", "UNREADABLE")]
    with_units = []
    for rollout in wrong:
        reference = str(rollout["reference"]).strip()
        numbers, written = _NUMBER.findall(reference), _NUMBER.findall(rollout["text"])
        if len(numbers) == 1 and reference != numbers[0] and written and float(written[-1]) == float(numbers[0]):
            with_units.append(rollout)
    if len(wrong) < at("completions") / 4 or len(with_units) < at("suspect_share") * len(wrong):
        return None
    return UNITS.finding(
        f"{len(with_units)} of the latest {len(wrong)} wrong completions end in the number of their reference, which "
        "holds more than the number",
        evidence=[shown(rollout, end=True) for rollout in with_units[-3:]],
    )
