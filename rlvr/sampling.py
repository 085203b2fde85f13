"""Which problem next: without replacement, one order an epoch, from a state of three numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from rlvr.records import Problem


class ProblemSampler:
    """Draws each problem once an epoch, in an order that is a function of seed and epoch alone.

    So the visit of a problem (how often it was drawn before) is the epoch, and the whole state is epoch and position.
    The order of an epoch sorts the problems by a hash of (seed, epoch, id): it depends neither on Python's generator
    nor on the order in which the problems came.
    """

    def __init__(self, problems: Sequence[Problem], order: Literal["shuffled", "as_given"], seed: int) -> None:
        if not problems:
            raise ValueError("a sampler needs at least one problem, got none")
        if order not in ("shuffled", "as_given"):
            raise ValueError(f"problems.order must be shuffled or as_given, got {order!r}")
        self._problems, self._order, self._seed = list(problems), order, seed
        self._epoch, self._position = 0, 0
        self._indices = self._order_of(0)
        self._fingerprint = _fingerprint(self._problems, order, seed)

    @property
    def epoch(self) -> float:
        """Passes over the problems so far."""
        return self._epoch + self._position / len(self._problems)

    def next(self, count: int) -> list[tuple[Problem, int]]:
        """The next `count` problems, each with its visit; more than there are problems goes on into the next epochs."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        drawn: list[tuple[Problem, int]] = []
        while len(drawn) < count:
            if self._position == len(self._problems):
                self._epoch, self._position = self._epoch + 1, 0
                self._indices = self._order_of(self._epoch)
            taken = self._indices[self._position : self._position + count - len(drawn)]
            drawn += [(self._problems[index], self._epoch) for index in taken]
            self._position += len(taken)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, and a fingerprint of what is drawn from."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. Raises `ValueError` if problems, order or seed are not the state's."""
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "the checkpoint was drawing from other problems: problems.train, problems.order or run.seed changed, "
                f"or the data did (there are {len(self._problems)} problems now); restore them, or start a new run"
            )
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= len(self._problems):
            raise ValueError(f"epoch {epoch}, position {position} cannot be: there are {len(self._problems)} problems")
        self._epoch, self._position = epoch, position
        self._indices = self._order_of(epoch)

    def _order_of(self, epoch: int) -> list[int]:
        indices = range(len(self._problems))
        if self._order == "as_given":
            return list(indices)
        return sorted(indices, key=lambda index: _hash(f"{self._seed}|{epoch}|{self._problems[index].id}"))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _fingerprint(problems: Sequence[Problem], order: str, seed: int) -> str:
    """Changes with the ids, the questions or the references of the problems, the order, or the seed."""
    digest = hashlib.blake2b(f"{order}|{seed}".encode(), digest_size=16)
    for problem in problems:
        digest.update(_hash(f"{problem.id}|{problem.prompt!r}|{problem.reference!r}"))
    return digest.hexdigest()
