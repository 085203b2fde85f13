"""From sampled completions to rows to imitate or to prefer: rejection sampling, shortest right ones, pairs.

Pure functions over the lines of ``rollouts.jsonl``. The sources: DeepSeek-R1 (2501.12948, section 2.3.3) keeps right
completions that are readable; Kimi k1.5 (2501.12599, section 2.4) the shortest right one of several, and pairs it with
longer ones.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.language import LanguageVerifier
from rlvr.config.select import (
    Filter,
    Finished,
    LanguageFilter,
    LengthFilter,
    NoCodeBlock,
    ParagraphFilter,
    RepetitionFilter,
    Select,
)
from rlvr.problems.rows import ProblemError
from rlvr.problems.templates import Prompt
from rlvr.records import Problem


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled completion."""

    place: str
    """File and line, for messages."""
    problem_id: str
    step: int
    completion: str
    """Without the template's prefill, which belongs to the prompt."""
    tokens: int
    finish_reason: str
    is_right: bool | None
    """None where it was not scored."""


@dataclass(slots=True)
class Selected:
    """The rows, and how many completions and problems went where."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read_sampled(
    record: Mapping[str, Any], place: str, problems: Mapping[str, Problem], render: Callable[[Problem], Prompt],
    settings: Select, term: str,
) -> Sampled:  # fmt: skip
    """A line of ``rollouts.jsonl``, checked against the recipe: its problem is one of the training problems, and is
    rendered as it was when the completion was sampled. Raises `ProblemError` naming the line."""
    for key, kind in (("problem_id", str), ("prompt", str), ("text", str), ("verdicts", dict), ("tokens", int)):
        if not isinstance(record.get(key), kind):
            raise ProblemError(f"{place}: no {key!r}; lines must be those of a run's rollouts.jsonl or of --output")
    problem = problems.get(record["problem_id"])
    if problem is None:
        raise ProblemError(
            f"{place}: problem {record['problem_id']!r} is none of the recipe's problems.train; select with the recipe "
            "of that run, RUN/recipe.yaml"
        )
    prompt = render(problem)
    if prompt.text != record["prompt"] or not record["text"].startswith(prompt.prefill):
        raise ProblemError(
            f"{place}: the recipe's template renders this problem as {prompt.text!r}, the completion was sampled from "
            f"{record['prompt']!r}; select with the template of that run, RUN/recipe.yaml"
        )
    verdict = record["verdicts"].get(term)
    if verdict is None:
        raise ProblemError(
            f"{place}: no verdict of the term {term!r} (select.term); there are {', '.join(record['verdicts'])}"
        )
    score = verdict["score"]
    return Sampled(
        place=place, problem_id=problem.id, step=int(record.get("step", 0)),
        completion=record["text"][len(prompt.prefill) :], tokens=record["tokens"],
        finish_reason=str(record.get("finish_reason")), is_right=None if score is None else score >= settings.success,
    )  # fmt: skip


def select(
    sampled: Iterable[Sampled], problems: Sequence[Problem], settings: Select, *,
    seed: int, count_tokens: Callable[[str], int],
) -> Selected:  # fmt: skip
    """Rows in the order of `problems`; the order of `sampled` decides only which of equals is the first.

    `count_tokens` says how many tokens a completion's text is read back as, the end of text left out.
    """
    result, by_problem = Selected(), defaultdict(list)
    for one in sampled:
        result.counts["completions"] += 1
        if not _is_within(one.step, settings.steps):
            result.counts["left out: other steps"] += 1
        elif one.is_right is None:
            result.counts["left out: not scored"] += 1
        else:
            by_problem[one.problem_id].append(one)
    result.counts["problems"] = len(by_problem)
    for problem in problems:
        if problem.id in by_problem:
            result.rows += _rows_of(problem, by_problem[problem.id], settings, seed, count_tokens, result.counts)
    result.counts["rows"] = len(result.rows)
    return result


def _rows_of(
    problem: Problem, sampled: Sequence[Sampled], settings: Select, seed: int,
    count_tokens: Callable[[str], int], counts: Counter[str],
) -> list[dict[str, Any]]:  # fmt: skip
    right = [one for one in sampled if one.is_right]
    wrong = [one for one in sampled if not one.is_right]
    counts["right"] += len(right)
    counts["wrong"] += len(wrong)
    for name, found, bounds in (("right", right, settings.right), ("wrong", wrong, settings.wrong)):
        if not _is_within(len(found), bounds):
            counts[f"problems left out: {name} not within {_shown(bounds)}"] += 1
            return []
    fit: list[Sampled] = []
    texts: dict[str, Sampled] = {}
    for one in right:
        texts.setdefault(one.completion, one)  # of equal texts the first
    for one in texts.values():
        failed = next((filter_ for filter_ in settings.filters if not passes(one, filter_, count_tokens)), None)
        if failed is not None:
            counts[f"left out: {failed.type}"] += 1
        else:
            fit.append(one)
    counts["left out: equal texts"] += len(right) - len(texts)
    if not fit:
        counts["problems left out: no right completion passes the filters"] += 1
        return []
    if settings.rule == "pairs":
        return _pairs(problem, fit, right, wrong, settings, counts)
    if settings.rule == "shortest_correct":
        fit.sort(key=lambda one: one.tokens)  # stable: of equals the first
    elif settings.rule == "random_correct":
        random.Random(f"{seed}/{problem.id}").shuffle(fit)
    counts["left out: more than keep"] += max(0, len(fit) - settings.keep)
    return [_row(problem, one, completion=one.completion) for one in fit[: settings.keep]]


def _pairs(
    problem: Problem, fit: Sequence[Sampled], right: Sequence[Sampled], wrong: Sequence[Sampled],
    settings: Select, counts: Counter[str],
) -> list[dict[str, Any]]:  # fmt: skip
    chosen = min(fit, key=lambda one: one.tokens)
    if settings.rejects == "wrong":
        rejected = list(wrong)
    else:
        rejected = [one for one in wrong if one.tokens > chosen.tokens]
        rejected += [one for one in right if one.tokens >= settings.ratio * chosen.tokens]
    others: dict[str, Sampled] = {}
    for one in rejected:
        if one.completion.strip() and one.completion != chosen.completion:
            others.setdefault(one.completion, one)
    if not others:
        counts["problems left out: nothing to reject"] += 1
    kept = list(others.values())[: settings.keep]
    return [
        _row(problem, chosen, chosen=chosen.completion, rejected=one.completion, rejected_tokens=one.tokens)
        for one in kept
    ]


def _row(problem: Problem, one: Sampled, **texts: Any) -> dict[str, Any]:
    """The row: the problem's other columns, so that a template that uses them renders it as before, then ours."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    return {
        **problem.meta, "prompt": prompt, **texts, "problem_id": problem.id, "tokens": one.tokens, "step": one.step,
        "sampled_at": one.place,
    }  # fmt: skip


def passes(one: Sampled, filter_: Filter, count_tokens: Callable[[str], int]) -> bool:
    """Whether a completion is what a filter asks for."""
    text = one.completion
    match filter_:
        case Finished():
            return one.finish_reason == "stop"
        case LanguageFilter():
            verdict = LanguageVerifier(filter_.language).grade(text, None)
            return verdict.score is not None and verdict.score >= filter_.at_least
        case ParagraphFilter():
            return all(len(paragraph.split()) <= filter_.most_words for paragraph in re.split(r"\n\s*\n", text))
        case NoCodeBlock():
            return "```" not in text
        case RepetitionFilter():
            return repeated_share(text, filter_.ngram) <= filter_.most
        case LengthFilter():
            return filter_.least <= one.tokens <= filter_.most
        case _:
            return one.tokens - count_tokens(text) in (0, 1)  # the token that ends the text may be one of them


def repeated_share(text: str, ngram: int) -> float:
    """Share of a text's word n-grams that stood in it before; 0.0 where it has none."""
    words = text.split()
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _is_within(value: int, bounds: Sequence[int | None]) -> bool:
    least, most = bounds
    return (least is None or value >= least) and (most is None or value <= most)


def _shown(bounds: Sequence[int | None]) -> str:
    least, most = bounds
    return f"[{'' if least is None else least}, {'' if most is None else most}]"
