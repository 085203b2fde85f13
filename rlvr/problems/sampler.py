"""Draws the next problem: in epochs without replacement, by a curriculum, or by priority; rests and retires problems.

There is no random generator: the order of an epoch and the outcome of a prioritised draw are hashes of seed, draw and
problem id. The state is a position and, if success rates matter, a few numbers for each problem visited so far.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvr.config import nearest
from rlvr.config.problems import AsGivenSampler, CurriculumSampler, PrioritisedSampler, Sampler
from rlvr.errors import RlvrError
from rlvr.problems.rows import ProblemError
from rlvr.records import Problem, RolloutGroup


class SamplerExhausted(RlvrError, RuntimeError):
    """Every problem that could be drawn has been retired: there is nothing left to learn from."""


@dataclass(slots=True)
class _Past:
    """The history of a problem that has been drawn."""

    visits: int = 0
    """How often it was drawn."""
    solved: float = 0.0
    """Successes, those of earlier visits discounted by ``memory`` once a visit."""
    scored: float = 0.0
    """Scored completions, discounted in the same way."""
    streak: int = 0
    """Latest visits in a row in which every completion was a success, or minus those in which none was."""
    rests_until: int = -1
    """The last epoch that it is left out of."""
    is_retired: bool = False

    @property
    def rate(self) -> float:
        """Success rate; 0 before the first scored completion."""
        return self.solved / self.scored if self.scored else 0.0


class ProblemSampler:
    """Draws problems by the recipe's sampler and, through `observe`, learns how their completions came out.

    A (problem, visit) pair is drawn once in a run. What is drawn depends on seed, settings, the problems' ids and what
    was observed; neither on Python's generator nor, except under ``as_given``, on the order of the problems.
    """

    def __init__(self, problems: Sequence[Problem], settings: Sampler, seed: int) -> None:
        """Raises `ProblemError` where a curriculum cannot say how hard a problem is."""
        if not problems:
            raise ValueError("a sampler needs at least one problem, got none")
        self._problems, self._settings, self._seed = list(problems), settings, seed
        self._index = {problem.id: index for index, problem in enumerate(self._problems)}
        self._hardness: list[float] = []
        if isinstance(settings, CurriculumSampler):
            self._hardness = [hardness(problem, settings) for problem in self._problems]
        self._names = np.array([_hash64(problem.id) for problem in self._problems], dtype=np.uint64)
        self._remembers = (
            isinstance(settings, PrioritisedSampler) or settings.rest is not None or settings.retire_at is not None
        )
        self._past: dict[int, _Past] = {}
        self._epoch, self._position = 0, 0
        self._indices = self._order_of(0)
        self._fingerprint = self._make_fingerprint()

    @property
    def epoch(self) -> float:
        """Passes over the problems so far."""
        return self._epoch + self._position / len(self._indices)

    def next(self, count: int) -> list[tuple[Problem, int]]:
        """The next `count` problems, each with its visit; more than there are problems goes on into the next epochs.

        Raises `SamplerExhausted` when all problems are retired.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        drawn: list[tuple[Problem, int]] = []
        draw = self._race if isinstance(self._settings, PrioritisedSampler) else self._walk
        while len(drawn) < count:
            if self._position == len(self._indices):
                self._epoch, self._position = self._epoch + 1, 0
                self._indices = self._order_of(self._epoch)
            self._check_left()
            drawn += [(self._problems[index], self._visit(index)) for index in draw(count - len(drawn))]
        return drawn

    def observe(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Learn from the graded groups of a step, trained or not, and return the ``sampler/...`` metrics.

        A group without a scored completion says nothing.
        """
        if self._remembers:
            for group in groups:
                self._learn(self._past.setdefault(self._index[group.problem.id], _Past()), group)
        return self._metrics()

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, a fingerprint of what is drawn from, and what is known of the problems, by their place."""
        state: dict[str, Any] = {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint}
        if self._remembers:
            state["past"] = [[index, *astuple(past)] for index, past in self._past.items()]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. Raises `ValueError` if problems, sampler or seed are not the state's."""
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "the checkpoint was drawing from other problems: problems.train, problems.sampler or run.seed changed, "
                f"or the data did (there are {len(self._problems)} problems now); restore them, or start a new run"
            )
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= len(self._problems):
            raise ValueError(f"epoch {epoch}, position {position} cannot be: there are {len(self._problems)} problems")
        self._epoch, self._position = epoch, position
        self._past = {index: _Past(*values) for index, *values in state["past"]} if self._remembers else {}
        self._indices = self._order_of(epoch)

    # ------------------------------------------------------------------------------------------------------- drawing

    def _walk(self, count: int) -> list[int]:
        """Up to `count` problems from here to the end of this epoch's order."""
        taken: list[int] = []
        while self._position < len(self._indices) and len(taken) < count:
            index = self._indices[self._position]
            self._position += 1
            if index not in self._past or self._is_awake(self._past[index]):
                taken.append(index)
        return taken

    def _race(self, count: int) -> list[int]:
        """Up to `count` different problems by an exponential race: each arrives after E / weight, E a hash of seed,
        draw and id that is distributed exponentially, so the first is problem i with probability w_i / sum w, and the
        next ones are draws without replacement (Efraimidis and Spirakis 2006)."""
        weights = np.ones(len(self._problems))
        for index, past in self._past.items():
            weights[index] = self._weight(past)
        waits = _exponentials(self._names ^ np.uint64(_hash64(f"{self._seed}|{self._epoch}|{self._position}")))
        with np.errstate(divide="ignore"):
            arrivals = waits / weights
        taken: list[int] = np.argsort(arrivals, kind="stable")[: min(count, np.count_nonzero(weights))].tolist()
        if taken:
            epochs, self._position = divmod(self._position + len(taken), len(self._problems))
            self._epoch += epochs
        else:  # all that are left rest
            self._epoch, self._position = self._epoch + 1, 0
        return taken

    def _weight(self, past: _Past) -> float:
        assert isinstance(self._settings, PrioritisedSampler)
        return max(1.0 - past.rate, self._settings.floor) if self._is_awake(past) else 0.0

    def _is_awake(self, past: _Past) -> bool:
        return not past.is_retired and past.rests_until < self._epoch

    def _visit(self, index: int) -> int:
        """How often it was drawn before, counted where that is not the number of epochs."""
        if not self._remembers:
            return self._epoch
        past = self._past.setdefault(index, _Past())
        past.visits += 1
        return past.visits - 1

    def _check_left(self) -> None:
        if any(index not in self._past or not self._past[index].is_retired for index in self._indices):
            return
        settings = self._settings
        which = f"{len(self._indices)} hardest" if len(self._indices) < len(self._problems) else f"{len(self._indices)}"
        raise SamplerExhausted(
            f"nothing is left to draw: all {which} training problems have reached a success rate of "
            f"problems.sampler.retire_at = {settings.retire_at} (share of completions with a reward of at least "
            f"{settings.success:g}) in {self._epoch} epochs; the run has done its work, or needs harder problems or a "
            "higher retire_at"
        )

    # ------------------------------------------------------------------------------------------------------ learning

    def _learn(self, past: _Past, group: RolloutGroup) -> None:
        settings = self._settings
        rewards = [reward for reward in group.rewards_G if reward is not None]
        if not rewards:
            return
        solved = sum(reward >= settings.success for reward in rewards)
        past.solved = settings.memory * past.solved + solved
        past.scored = settings.memory * past.scored + len(rewards)
        if settings.retire_at is not None and past.rate >= settings.retire_at:
            past.is_retired = True
        if solved == len(rewards):
            past.streak = max(past.streak, 0) + 1
        elif solved == 0:
            past.streak = min(past.streak, 0) - 1
        else:
            past.streak = 0
        rest = settings.rest
        if rest is None or abs(past.streak) < rest.visits:
            return
        if rest.when in ("both", "solved" if past.streak > 0 else "unsolved"):
            past.rests_until, past.streak = self._epoch + rest.epochs, 0

    def _metrics(self) -> dict[str, float]:
        metrics = {"sampler/epoch": self.epoch}
        known = [past for past in self._past.values() if past.scored]
        if known:
            metrics["sampler/seen"] = float(len(known))
            metrics["sampler/success_rate"] = math.fsum(past.rate for past in known) / len(known)
        if self._settings.rest is not None:
            resting = (not past.is_retired and not self._is_awake(past) for past in self._past.values())
            metrics["sampler/rested"] = float(sum(resting))
        if self._settings.retire_at is not None:
            metrics["sampler/retired"] = float(sum(past.is_retired for past in self._past.values()))
        return metrics

    # --------------------------------------------------------------------------------------------------------- order

    def _order_of(self, epoch: int) -> list[int]:
        """The problems of an epoch, in order."""
        indices, settings = list(range(len(self._problems))), self._settings
        if isinstance(settings, AsGivenSampler | PrioritisedSampler):
            return indices
        indices.sort(key=lambda index: _hash(f"{self._seed}|{epoch}|{self._problems[index].id}"))
        if isinstance(settings, CurriculumSampler) and epoch >= settings.warmup_epochs:
            indices.sort(key=lambda index: self._hardness[index])
            easy = len(indices) - math.ceil(settings.hardest * len(indices))
            if easy:  # which of equally hard ones are in must not change from epoch to epoch
                ranked = sorted(indices, key=lambda index: (self._hardness[index], self._names[index]))
                among = set(ranked[easy:])
                indices = [index for index in indices if index in among]
        return indices

    def _make_fingerprint(self) -> str:
        """Changes with the ids, the questions or the references of the problems, the sampler, or the seed."""
        settings = self._settings.model_dump_json(exclude_defaults=True)
        digest = hashlib.blake2b(f"{self._settings.type}|{settings}|{self._seed}".encode(), digest_size=16)
        for problem in self._problems:
            digest.update(_hash(f"{problem.id}|{problem.prompt!r}|{problem.reference!r}"))
        for value in self._hardness:
            digest.update(f"|{value!r}".encode())
        return digest.hexdigest()


def hardness(problem: Problem, settings: CurriculumSampler) -> float:
    """The difficulty of a problem for a curriculum; only the order matters. Raises `ProblemError`."""
    where = f"{problem.source or problem.id}: problems.sampler.column {settings.column!r}"
    if settings.column not in problem.meta:
        near = nearest(settings.column, problem.meta)
        raise ProblemError(
            f"{where} is not there{near}; columns: {', '.join(problem.meta) or 'none'}. Name one that says how hard a "
            "problem is, or measure it: rlvr generate RECIPE --difficulty FILE, then problems.difficulty: FILE"
        )
    value = problem.meta[settings.column]
    if isinstance(settings.easy, list):
        if value not in settings.easy:
            raise ProblemError(f"{where} holds {value!r}, which problems.sampler.easy does not name: {settings.easy}")
        return float(settings.easy.index(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProblemError(
            f"{where} must hold a finite number, got {value!r}; for words give problems.sampler.easy all of them, from "
            "the easiest to the hardest"
        )
    return float(value) if settings.easy == "low" else -float(value)


def _exponentials(names: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A draw from the exponential distribution for each name: splitmix64's mixing, then the inverse of 1 - exp(-x)."""
    mixed = names + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    uniform: NDArray[np.float64] = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(uniform)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
