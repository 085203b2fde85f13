"""Rules over a run's latest answers: rewards that the text does not bear out, and references that no answer can "
"meet."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence

from rlvr.config import Recipe
from rlvr.doctor.answers import Answer, first_outcome, place, shown
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.rule import Rule
from rlvr.runlog.thresholds import at
from rlvr.view.index import words_before_answer
from rlvr.view.suspects import HIGH, REASONED, REFERENCES, SHORT, UNREASONED

_READ = "Read them by `rlvr view` (Suspects); if they are not worth their reward, make rewards.terms stricter: "
REPEATED = Rule(
    name="repeated_answer",
    grade=Grade.STOPS,
    fires=f"at least {at('suspect_share'):g} of the latest answers with a high reward are texts that have it, to the "
    f"letter, under {REFERENCES} or more different references",
    advice=_READ + "one text cannot be right for different references.",
)
SHORT_ANSWER = Rule(
    name="short_answer",
    grade=Grade.NOTE,
    fires=f"at least {at('suspect_share'):g} of the latest answers with a high reward have at most {SHORT:g} of the "
    "median length of their own step",
    advice=_READ + "a format term, or a check of the reasoning.",
)
UNREASONED_ANSWER = Rule(
    name="unreasoned_answer",
    grade=Grade.NOTE,
    fires=f"at least {at('suspect_share'):g} of the latest answers with a high reward begin with the answer, where the "
    f"median of their step has {REASONED} words or more before it",
    advice=_READ + "a format term that wants reasoning.",
)
UNITS = Rule(
    name="reference_format",
    grade=Grade.STOPS,
    fires=f"at least {at('suspect_share'):g} of the latest wrong answers end in the one number that their reference "
    "holds among other text",
    advice="The references have units or words that the verifier compares too: strip them in the data, or take a "
    "verifier that knows them.",
)
RULES = (UNITS, REPEATED, SHORT_ANSWER, UNREASONED_ANSWER)
_EXPLAINS = {"reference_format": {"all_wrong", "no_variance", "no_progress", "constant_reward"},
             "repeated_answer": {"too_good_too_soon", "solved", "entropy_gone", "length_collapsing"}}  # fmt: skip
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def causes_of(findings: Sequence[Finding]) -> list[Finding]:
    """Without those that a finding of this module explains."""
    explained = {name for one in findings for name in _EXPLAINS.get(one.rule, ())}
    return [one for one in findings if one.rule not in explained]


def look(answers: Sequence[Answer], recipe: Recipe) -> list[Finding]:
    """What the latest steps' answers show; nothing where there are too few."""
    if not answers:
        return []
    first, last = answers[0]["step"], answers[-1]["step"]
    since = min(last - at("suspect_recent") * (last - first), last - at("steps") + 1)
    recent = [one for one in answers if one["step"] >= since and one["reward"] is not None]
    if last - first + 1 < at("steps") or len(recent) < at("answers"):
        return []
    found = [_units(recent)]
    low, top = min(one["reward"] for one in answers if one["reward"] is not None), max(one["reward"] for one in recent)
    high = [one for one in recent if one["reward"] >= low + HIGH * (top - low)]
    if low < top and len(high) >= at("answers") / 4:
        found += [_repeated(high), _short(recent, high), _unreasoned(recent, high)]
    return [one for one in found if one is not None]


def _repeated(high: Sequence[Answer]) -> Finding | None:
    texts: dict[str, list[Answer]] = defaultdict(list)
    for one in high:
        texts[one["text"].strip()].append(one)
    groups = [ones for ones in texts.values() if len({str(one["reference"]) for one in ones}) >= REFERENCES]
    count = sum(map(len, groups))
    if count < at("suspect_share") * len(high):
        return None
    groups.sort(key=len, reverse=True)
    return REPEATED.found(
        f"{count} of the latest {len(high)} answers with a high reward are {len(groups)} texts that have it under "
        f"{REFERENCES} or more different references",
        evidence=[f"{len(ones)} times: {shown(ones[-1])}, also " + ", ".join(map(place, ones[-3:-1]))
                  for ones in groups[:3]],
    )  # fmt: skip


def _short(recent: Sequence[Answer], high: Sequence[Answer]) -> Finding | None:
    """Against the answers of the same step: a policy that learns to be short is no suspect."""
    medians = _medians({step: [one["tokens"] for one in ones] for step, ones in _by_step(recent).items()})
    found = [one for one in high if one["tokens"] <= SHORT * medians[one["step"]]]
    if len(found) < max(at("steps"), at("suspect_share") * len(high)):
        return None
    return SHORT_ANSWER.found(
        f"{len(found)} of the latest {len(high)} answers with a high reward are far shorter than the others of their "
        "step",
        evidence=[shown(one) for one in found[-3:]],
    )


def _unreasoned(recent: Sequence[Answer], high: Sequence[Answer]) -> Finding | None:
    words = {id(one): words_before_answer(one["text"]) for one in recent}
    known = {step: [n for one in ones if (n := words[id(one)]) is not None] for step, ones in _by_step(recent).items()}
    medians = _medians({step: values for step, values in known.items() if values})
    found = [
        one for one in high
        if (count := words[id(one)]) is not None and (median := medians[one["step"]]) >= REASONED
        and count <= UNREASONED * median
    ]  # fmt: skip
    if len(found) < max(at("steps"), at("suspect_share") * len(high)):
        return None
    return UNREASONED_ANSWER.found(
        f"{len(found)} of the latest {len(high)} answers with a high reward give the answer at once, unlike the others "
        "of their step",
        evidence=[shown(one) for one in found[-3:]],
    )


def _units(recent: Sequence[Answer]) -> Finding | None:
    wrong = [one for one in recent if first_outcome(one) in ("WRONG", "UNREADABLE")]
    found = []
    for one in wrong:
        reference = str(one["reference"]).strip()
        numbers, said = _NUMBER.findall(reference), _NUMBER.findall(one["text"])
        if len(numbers) == 1 and reference != numbers[0] and said and float(said[-1]) == float(numbers[0]):
            found.append(one)
    if len(wrong) < at("answers") / 4 or len(found) < at("suspect_share") * len(wrong):
        return None
    return UNITS.found(
        f"{len(found)} of the latest {len(wrong)} wrong answers end in the number of their reference, which holds more "
        "than the number",
        evidence=[shown(one, end=True) for one in found[-3:]],
    )


def _by_step(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    steps: dict[int, list[Answer]] = defaultdict(list)
    for one in answers:
        steps[one["step"]].append(one)
    return steps


def _medians(values: dict[int, list[int]]) -> dict[int, float]:
    return {step: statistics.median(of_step) for step, of_step in values.items()}
