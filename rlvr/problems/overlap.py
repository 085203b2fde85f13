"""Overlap between training and evaluation problems: exact, by canonical key, and near, by word n-grams.

The n-gram test is the usual one for contamination: 13 words in a row in common (GPT-3, arXiv 2005.14165, appendix C).
One shared 13-gram is often boilerplate ("find the remainder when ... is divided by"), so a pair counts as near only
when at least `NEAR` of the evaluation problem's n-grams occur in one training problem. Near pairs are reported, never
dropped: two problems that differ in one number share most of their words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlvr.problems.keys import canonical_tokens, prompt_text, text_key
from rlvr.problems.rows import SHOWN, ProblemError
from rlvr.records import Problem

NGRAM = 13
NEAR = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """A training problem and an evaluation problem that are one, or nearly one."""

    train: Problem
    eval_set: str
    evaluation: Problem
    share: float
    """Share of the evaluation problem's n-grams that the training problem holds; 1.0 for an equal key."""

    def __str__(self) -> str:
        shown = f" ({self.share:.0%} of its {NGRAM}-grams)" if self.share < 1.0 else ""
        return f"{_place(self.train)} = {self.eval_set} {_place(self.evaluation)}{shown}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of a training set with evaluation sets."""

    train_size: int
    same: tuple[Pair, ...]
    """Pairs with an equal canonical key."""
    near: tuple[Pair, ...]
    """Pairs with different keys and most n-grams in common, the closest first."""

    def lines(self) -> list[str]:
        """The report for people: counts, and the first pairs of either kind; empty if nothing is shared."""
        lines = []
        for pairs, relation in ((self.same, "are the same problem as one of"), (self.near, "are nearly a problem of")):
            sets = Counter(pair.eval_set for pair in pairs)
            for name, count in sets.items():
                rows = len({pair.train.id for pair in pairs if pair.eval_set == name})
                lines.append(
                    f"{rows} of {self.train_size} training problems {relation} eval set {name!r} ({count} pairs):"
                )
                lines += [f"  {pair}" for pair in [pair for pair in pairs if pair.eval_set == name][:SHOWN]]
                lines += [f"  ... and {count - SHOWN} more pairs"] if count > SHOWN else []
        return lines


def find_overlap(train: Sequence[Problem], evals: Mapping[str, Sequence[Problem]]) -> Overlap:
    """Compare a training set with evaluation sets by name. Time and memory are linear in their words."""
    by_key: dict[str, list[tuple[str, Problem]]] = defaultdict(list)
    by_ngram: dict[int, list[int]] = defaultdict(list)
    measured: list[tuple[str, Problem, int]] = []
    for name, problems in evals.items():
        for problem in problems:
            tokens = canonical_tokens(prompt_text(problem.prompt))
            for key in {problem.key, text_key(tokens)}:
                by_key[key].append((name, problem))
            if ngrams := _ngrams(tokens):
                for ngram in ngrams:
                    by_ngram[ngram].append(len(measured))
                measured.append((name, problem, len(ngrams)))
    same: list[Pair] = []
    near: list[Pair] = []
    for problem in train:
        tokens = canonical_tokens(prompt_text(problem.prompt))
        keys = {problem.key, text_key(tokens)}  # the text's too: a generated question is found in a file of questions
        equal = {(name, held_out.id): held_out for key in keys for name, held_out in by_key.get(key, ())}
        same += [Pair(problem, name, held_out, 1.0) for (name, _), held_out in equal.items()]
        shared = Counter(index for ngram in _ngrams(tokens) for index in by_ngram.get(ngram, ()))
        for index, count in shared.items():
            name, held_out, total = measured[index]
            if count >= NEAR * total and (name, held_out.id) not in equal:
                near.append(Pair(problem, name, held_out, count / total))
    near.sort(key=lambda pair: -pair.share)
    return Overlap(len(train), tuple(same), tuple(near))


def apply_overlap(
    train: Sequence[Problem], overlap: Overlap, policy: Literal["refuse", "drop", "report"]
) -> list[Problem]:
    """The training problems that remain under the recipe's ``problems.overlap``; only equal keys count.

    Raises `ProblemError` under ``refuse`` if there is any, and under ``drop`` if nothing would remain.
    """
    if policy == "refuse" and overlap.same:
        raise ProblemError(
            "training and evaluation share problems:\n  "
            + "\n  ".join(overlap.lines())
            + "\n  set problems.overlap to 'drop' to leave these out of training, or 'report' to train on them",
            rule="train_eval_overlap",
        )
    if policy != "drop":
        return list(train)
    shared = {pair.train.id for pair in overlap.same}
    kept = [problem for problem in train if problem.id not in shared]
    if not kept:
        raise ProblemError(
            f"problems.overlap 'drop' leaves nothing: all {len(train)} training problems are evaluated on"
        )
    return kept


def _ngrams(tokens: list[str]) -> set[int]:
    """Hashes of the runs of `NGRAM` words or numbers."""
    words = [token for token in tokens if token[-1].isalnum()]
    return {hash(tuple(words[start : start + NGRAM])) for start in range(len(words) - NGRAM + 1)}


def _place(problem: Problem) -> str:
    return problem.source or problem.id
