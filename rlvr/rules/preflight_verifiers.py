"""Rules about verifiers: how they grade completions made from the references, before any is sampled.

Completions are made in all common formats. What the template has written already (a prefill, or a thought that the
prompt begins) and what its stop strings would cut off is taken into account, so that a template that makes full marks
impossible is found without a model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewards import Outcome, Verdict
from rewards.combine import Term
from rewards.pool import GradingPool
from rlvr.config import Recipe
from rlvr.problems.templates import Prompt
from rlvr.records import Problem
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.preflight_data import Prompts
from rlvr.rules.preflight_settings import rewards_teach
from rlvr.rules.rule import Rule

PROBED = 4
"""Problems whose references are made into completions."""
PATIENCE = 4.0
"""Seconds after which no more completions are given to a slow verifier (a judge, a sandbox)."""
DISAGREES = 0.1
"""Share of completions judged differently the second time from which rewards are noise."""
ENOUGH = 10
"""Gradings from which such a share says something."""
RAISES = 0.5
THOUGHT = "<think> So. </think> "
FORMS = (
    "{r}", "The answer is {r}.", "\\boxed{{{r}}}", "So the answer is \\boxed{{{r}}}.", "#### {r}",
    "<answer> {r} </answer>", "<answer>{r}</answer>", "<answer> \\boxed{{{r}}} </answer>",
)  # fmt: skip
"""How right completions look; each with a thought before it, and without."""
NONSENSE = (
    "", "?", "I do not know.", "xyzzy", "a", "0", "-987654321", "\\boxed{-987654321}", "#### -987654321",
    "<answer> -987654321 </answer>", "<think> Hm. </think> <answer> nothing </answer>", "The answer is quux.",
    "我不知道。", "Ich weiß es nicht, und das ist auch gut so.", "e e e e e e e", "ab cd ef", "odd", "13579",
    "A longer text that goes round and round and says nothing at all, so that whoever counts words has some to count.",
    "WHAT A NOISE!", "- one\n- two", "```python\nprint('no')\n```", '{"answer": null}', "no no no, " * 300,
)  # fmt: skip
"""Completions that are not right, in many forms: some verifier may like one, none may like all."""
WITH_UNIT = re.compile(
    r"^\s*(?:\\?\$\s*)?(-?\d[\d,.]*)\s*((?:\\text\s*\{|\\mathrm\s*\{)?\s*[A-Za-z°%][A-Za-z°%/^ }]*)$"
)
UNITS = 0.05

ALWAYS_RIGHT = Rule(
    "verifier_always_right", Grade.STOPS,
    f"a verifier gives full marks to {len(NONSENSE)} completions that say nothing, the empty one included; slows "
    "learning where other terms have weight",
    "correct the verifier: `python -m rewards check module:Class` shows what it says to adversarial text",
)  # fmt: skip
DISAGREEING = Rule(
    "verifier_disagrees", Grade.STOPS,
    f"a verifier judges a completion differently the second time; below {DISAGREES:.0%} of the completions, or with "
    f"fewer than {ENOUGH}, it slows learning",
    "make the verifier a function of text and reference alone: no random numbers, no clock, no memory of "
    "other gradings; temperature 0 and more votes for a judge",
)  # fmt: skip
RAISING = Rule(
    "verifier_raises", Grade.STOPS,
    f"a verifier raises on at least {RAISES:.0%} of the completions given to it; on fewer it slows learning",
    "correct the verifier: an answer that it cannot read is Verdict(0.0, Outcome.UNREADABLE), not an exception",
)  # fmt: skip
NO_VERDICT = Rule(
    "verifier_never_answers", Grade.STOPS,
    "a verifier runs out of time, or ends its process, on every completion given to it",
    "correct the verifier: `python -m rewards check module:Class` shows it alone; raise rewards.timeout only if it is "
    "meant to take that long",
)  # fmt: skip
AGAINST_FORMAT = Rule(
    "prefill_against_format", Grade.STOPS,
    "a verifier gives full marks to completions in some form, but to none once the template has written what it "
    "writes: a prefill that the format forbids, or a `<think>` that the prompt begins and graders do not see",
    "take the template and the format check that belong together: graders read template.prefill before what the model "
    "sampled, and nothing else of the prompt",
)  # fmt: skip
STOP_CUTS = Rule(
    "stop_cuts_answer", Grade.STOPS,
    "a verifier gives full marks to completions in some form, but to none once they are cut at `template.stop`",
    "set template.stop to what follows the whole answer (</answer> for R1's tags), or to []",
)  # fmt: skip
NO_ROOM = Rule(
    "completion_does_not_fit", Grade.STOPS,
    "the shortest completion with full marks, with a word of thought where the format wants one, has more tokens than "
    "`rollout.max_new_tokens`",
    "raise rollout.max_new_tokens: to several times that length, for thoughts to grow",
)  # fmt: skip
UNIT = Rule(
    "reference_units", Grade.SLOWS,
    f"at least {UNITS:.0%} of the references are a number with a unit; a note where the number alone gets full marks",
    "take the units out of the references, or ask for them in the question: an answer without is marked wrong",
)  # fmt: skip
UNREACHED = Rule(
    "no_right_completion_known", Grade.NOTE,
    "no completion made from a reference, in any common form, gets full marks",
    "nothing if the verifier wants another form; else compare what it reads with what the references hold: "
    "`rlvr generate RECIPE`, then read the completions",
)  # fmt: skip
SLOW = Rule(
    "verifier_slow", Grade.NOTE, f"{PATIENCE:g} seconds were not enough to give a verifier a few dozen completions",
    "raise rewards.workers and look at time/grade_wait in a run",
)  # fmt: skip

GRADER_RULES = (
    ALWAYS_RIGHT, DISAGREEING, RAISING, NO_VERDICT, AGAINST_FORMAT, STOP_CUTS, NO_ROOM, UNIT, UNREACHED, SLOW,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MadeCompletion:
    """A right completion in one form, as a model would write it after a prompt."""

    sampled: str
    """What the model writes."""
    opens_thought: bool
    """Whether it writes ``<think>`` itself."""
    thinks: bool


def right_completions(reference: object) -> list[MadeCompletion]:
    """The reference as a completion in all forms; none for a reference that is neither text nor a number."""
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        return []
    plain = [form.format(r=reference) for form in FORMS]
    begun = THOUGHT.removeprefix("<think>")
    return [
        *(MadeCompletion(text, False, False) for text in plain),
        *(MadeCompletion(THOUGHT + text, True, True) for text in plain),
        *(MadeCompletion(begun + text, False, True) for text in plain),
    ]


def in_thought(problem: Problem, prompt: Prompt) -> bool:
    """True where the prompt ends within a thought: ``<think>`` is open after the question."""
    question = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    behind = prompt.text.rpartition(question.strip())[2] if question.strip() in prompt.text else prompt.text[-200:]
    return behind.rfind("<think>") > behind.rfind("</think>")


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the end of the stop string that completes first."""
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class Grader:
    """Asks one verifier, twice each time, and stops when that takes too long."""

    def __init__(self, pool: GradingPool, name: str, patience: float) -> None:
        self.pool, self.name, self.patience = pool, name, patience
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.again: dict[tuple[str, str], Verdict] = {}
        self.seconds = 0.0

    def ask(self, texts: Sequence[str], reference: object) -> dict[str, Verdict]:
        """The verdict on each text, as far as patience reaches; the second grading goes in the other order."""
        key = repr(reference)
        new = [text for text in dict.fromkeys(texts) if (text, key) not in self.verdicts]
        for batch in [new[:1], new[1:]] if not self.verdicts else [new]:  # one alone tells how slow it is
            started = time.perf_counter()
            if not batch or self.is_slow:
                continue
            first = self.pool.grade_many((self.name, text, reference) for text in batch)
            second = self.pool.grade_many((self.name, text, reference) for text in reversed(batch))
            self.verdicts |= {(text, key): verdict for text, verdict in zip(batch, first, strict=True)}
            self.again |= {(text, key): verdict for text, verdict in zip(batch, reversed(second), strict=True)}
            self.seconds += time.perf_counter() - started
        return {text: self.verdicts[text, key] for text in texts if (text, key) in self.verdicts}

    @property
    def is_slow(self) -> bool:
        """True once no more is asked: two gradings took half a second, or all of them the whole patience."""
        return self.seconds > self.patience or (len(self.verdicts) == 1 and self.seconds > self.patience / 8)


def check_graders(
    recipe: Recipe, seen: Prompts, pool: GradingPool, terms: Sequence[Term], *, patience: float = PATIENCE
) -> Iterator[Finding]:
    """Findings over the verifiers of the reward, on the first problems with a reference each."""
    if not rewards_teach(recipe):
        return
    weighted = [term for term in terms if term.weight or term.name in {other.gate for other in terms}]
    used = [term for term in weighted if term.name in {own.name for own in recipe.rewards.terms}]
    graders = {term.name: Grader(pool, term.name, patience) for term in used}
    rewarded = {term.name: term.weight > 0 or term.name in {other.gate for other in terms} for term in used}
    shortest: list[int] = []
    best: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in graders}
    for problem, prompt in list(zip(seen.problems, seen.prompts, strict=True))[:PROBED]:
        fits: list[set[str]] = []
        for name, grader in graders.items():
            if problem.verifiers is not None and name not in problem.verifiers:
                continue
            verdicts = grader.ask(NONSENSE, problem.reference)
            reached = _reached(grader, problem, prompt, seen.renderer.stop)
            best[name].append((bool(reached[0]), bool(reached[1]), bool(reached[2])))
            fits.append(reached[2] | {text for text, verdict in verdicts.items() if verdict.outcome is Outcome.CORRECT})
        together = set.intersection(*fits) if fits else set()
        if together:
            few = sorted(together, key=len)[:3]  # in characters; the long ones would make the tokenizer warn
            shortest.append(min(len(seen.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in few))
    constant = [name for name, grader in graders.items() if _is_always_right(grader)]
    for name, grader in graders.items():
        yield from _steadiness(name, grader)
        if name in constant:
            yield _always_right(name, alone=set(constant) >= {term.name for term in used if term.weight})
        elif rewarded[name]:
            yield from _reachable(name, best[name], seen)
    if shortest and sorted(shortest)[len(shortest) // 2] > recipe.rollout.max_new_tokens:
        need = sorted(shortest)[len(shortest) // 2]
        yield NO_ROOM.finding(
            f"rollout.max_new_tokens = {recipe.rollout.max_new_tokens}; the shortest completions with full marks that "
            f"were found have {need} tokens"
        )
    yield from _units(seen, graders)


def _reached(
    grader: Grader, problem: Problem, prompt: Prompt, stops: Sequence[str]
) -> tuple[set[str], set[str], set[str]]:
    """The completions with full marks: as they are; after the prefill; and cut at the stop strings."""
    completions = right_completions(problem.reference)
    thinking = in_thought(problem, prompt)
    # after an open thought nothing opens another or answers without closing it; without one nothing closes one
    possible = [
        completion for completion in completions if (completion.thinks and not completion.opens_thought) == thinking
    ]
    possible += [
        MadeCompletion(rest, False, False)
        for completion in completions
        if (rest := _rest(completion.sampled, prompt.prefill))
    ]
    texts = [completion.sampled for completion in completions]
    texts += [prompt.prefill + completion.sampled for completion in possible]
    texts += [prompt.prefill + cut(completion.sampled, stops) for completion in possible]
    verdicts = grader.ask(texts, problem.reference)
    right = {text for text, verdict in verdicts.items() if verdict.outcome is Outcome.CORRECT}
    return (
        {completion.sampled for completion in completions if completion.sampled in right},
        {completion.sampled for completion in possible if prompt.prefill + completion.sampled in right},
        {completion.sampled for completion in possible if prompt.prefill + cut(completion.sampled, stops) in right},
    )


def _rest(text: str, prefill: str) -> str:
    """The rest of a completion that the prefill has begun, as in ``\\boxed{``; nothing if it has not."""
    begun = next((size for size in range(min(len(text), len(prefill)), 0, -1) if prefill.endswith(text[:size])), 0)
    return text[begun:] if text[:begun].strip() else ""


def _is_always_right(grader: Grader) -> bool:
    verdicts = list(grader.verdicts.items())
    nonsense = [verdict for (text, _), verdict in verdicts if text in NONSENSE]
    return len(nonsense) >= len(NONSENSE) and all(verdict.outcome is Outcome.CORRECT for verdict in nonsense)


def _always_right(name: str, *, alone: bool) -> Finding:
    return ALWAYS_RIGHT.finding(
        f"reward term {name!r} gives full marks to all of {len(NONSENSE)} completions that say nothing, the empty one "
        f"and {NONSENSE[3]!r} among them" + ("" if alone else "; what it adds is the same for all"),
        grade=Grade.STOPS if alone else Grade.SLOWS,
    )


def _steadiness(name: str, grader: Grader) -> Iterator[Finding]:
    """Whether the verifier gives verdicts at all, in time, and the same ones twice."""
    raised = [(text, verdict) for (text, _), verdict in grader.verdicts.items() if verdict.outcome is Outcome.ERROR]
    if raised:
        share = len(raised) / len(grader.verdicts)
        text, verdict = raised[0]
        yield RAISING.finding(
            f"reward term {name!r} raised on {len(raised)} of {len(grader.verdicts)} completions made for it: "
            f"{_reason(verdict)}",
            evidence=[f"on {text!r:.60}: {_reason(verdict)}", *_raised_at(verdict)],
            grade=Grade.STOPS if share >= RAISES else Grade.SLOWS,
        )
    ends = {verdict.outcome for verdict in (*grader.verdicts.values(), *grader.again.values())}
    if ends and ends <= {Outcome.TIMEOUT, Outcome.CRASHED}:
        how = {
            Outcome.TIMEOUT: "it was still running when its time was over (rewards.timeout)",
            Outcome.CRASHED: "its process ended while it graded (sys.exit, os._exit, or memory or stack ran out)",
        }
        text, verdict = next(((text, verdict) for (text, _), verdict in grader.verdicts.items()))
        yield NO_VERDICT.finding(
            f"reward term {name!r} gave no verdict on any of {len(grader.verdicts)} completions made for it: "
            + ", or ".join(how[outcome] for outcome in sorted(ends)),
            evidence=[f"on {text!r:.60}: {_reason(verdict)}"],
        )
        return
    yield from disagreement(name, list(zip(grader.verdicts.items(), grader.again.values(), strict=True)))
    if grader.is_slow:
        yield SLOW.finding(
            f"reward term {name!r} took {grader.seconds:.1f} s for {2 * len(grader.verdicts)} gradings, one after "
            "another: not all of its checks were made"
        )


def _reason(verdict: Verdict) -> str:
    """Why the pool gave no score, in one line."""
    return " ".join(str(verdict.detail.get("reason", verdict.outcome)).split())[:300]


def _raised_at(verdict: Verdict) -> list[str]:
    """The innermost frame of a verifier's traceback, with its source line."""
    at = [line.strip() for line in str(verdict.detail.get("traceback", "")).splitlines()]
    frames = [index for index, line in enumerate(at) if line.startswith("File ")]
    return [": ".join(at[frames[-1] : frames[-1] + 2])] if frames else []


def disagreement(name: str, pairs: Sequence[tuple[tuple[tuple[str, str], Verdict], Verdict]]) -> Iterator[Finding]:
    """The finding for ((text, reference), verdict) and the verdict on the same again; what a slow machine may have
    caused (TIMEOUT, CRASHED, ERROR) is no disagreement."""
    hard = (Outcome.TIMEOUT, Outcome.CRASHED, Outcome.ERROR)
    judged = [
        (key, first, second)
        for (key, first), second in pairs
        if first.outcome not in hard and second.outcome not in hard
    ]
    changed = [
        (key, first, second)
        for key, first, second in judged
        if first.score != second.score or first.outcome is not second.outcome
    ]
    if changed:
        share = len(changed) / len(judged)
        yield DISAGREEING.finding(
            f"reward term {name!r} judged {len(changed)} of {len(judged)} completions differently the second time",
            evidence=[
                f"{text!r:.60} was {first.score:g}, then {second.score:g}" for (text, _), first, second in changed[:3]
            ],
            grade=Grade.STOPS if share >= DISAGREES and len(judged) >= ENOUGH else Grade.SLOWS,
        )


def _reachable(name: str, best: Sequence[tuple[bool, bool, bool]], seen: Prompts) -> Iterator[Finding]:
    """Whether full marks can be reached with this template and its stop strings."""
    plain = any(reached[0] for reached in best)
    behind, whole = any(reached[1] for reached in best), any(reached[2] for reached in best)
    prompt = seen.prompts[0] if seen.prompts else None
    if plain and not behind and prompt is not None:
        end = f"the prefill {prompt.prefill!r}" if prompt.prefill else f"a prompt that ends with {prompt.text[-30:]!r}"
        yield AGAINST_FORMAT.finding(
            f"reward term {name!r} gives full marks to no completion after {end}, though it does without"
        )
    elif behind and not whole:
        yield STOP_CUTS.finding(
            f"reward term {name!r} gives full marks to no completion that is cut at template.stop = "
            f"{list(seen.renderer.stop)}, though it does to whole ones"
        )
    elif best and not plain and any(right_completions(problem.reference) for problem in seen.problems[:PROBED]):
        yield UNREACHED.finding(
            f"reward term {name!r} gave full marks to none of {len(FORMS) * 3} completions made from each reference"
        )


def _units(seen: Prompts, graders: Mapping[str, Grader]) -> Iterator[Finding]:
    """References of a number and a unit, and whether the number alone is an answer."""
    matches = [
        (problem, WITH_UNIT.match(problem.reference)) for problem in seen.problems if isinstance(problem.reference, str)
    ]
    with_units = [(problem, match.group(1)) for problem, match in matches if match is not None]
    if not with_units or len(with_units) < UNITS * len(seen.problems):
        return
    strict: list[str] = []
    for problem, number in with_units[: 2 * PROBED]:
        for name, grader in graders.items():
            whole = grader.ask(
                [completion.sampled for completion in right_completions(problem.reference)], problem.reference
            )
            forms = [completion.sampled for completion in right_completions(number.strip(",."))]
            bare = grader.ask(forms, problem.reference)
            right = any(verdict.outcome is Outcome.CORRECT for verdict in bare.values())
            if bare and not right and any(verdict.outcome is Outcome.CORRECT for verdict in whole.values()):
                strict.append(f"{problem.source or problem.id}: {problem.reference!r}, {name} says no to {number!r}")
    message = f"{len(with_units)} of the first {len(seen.problems)} references are numbers with units, as "
    message += f"{with_units[0][0].reference!r}"
    if strict:
        yield UNIT.finding(f"{message}; the number alone is marked wrong", evidence=strict[:3])
    else:
        yield UNIT.finding(
            f"{message}; the number alone gets full marks too", grade=Grade.NOTE,
            advice="nothing: the verifier reads past the unit; other verifiers may not",
        )  # fmt: skip
