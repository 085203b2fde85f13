"""Recipe section ``rollout.schedule``: when the engine samples, when the learner trains, how old a token may be.

All schedules share one mechanism: problems are drawn until `in_flight` groups are under way, the learner takes
``prompts_per_step`` finished groups, and the unfinished ones continue. They differ in how many groups are under way, in
what the engine does while the learner computes, and in the age (in weight versions) that a trained token may have.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from rlvr.config.base import NonNegativeInt, Section

OnStale = Literal["wait", "drop", "mask"]
"""What happens at the bound on age. ``wait``: the learner waits for the groups that would pass it, so none ever does;
``drop``: groups that have passed it are thrown away and counted; ``mask``: their tokens beyond it are not trained."""


class _Schedule(Section):
    """The interface of all schedules."""

    overlaps: ClassVar[bool] = False
    """True where the engine goes on sampling while the learner computes."""

    def in_flight(self, prompts: int) -> int:
        """Problems that are on their way while the learner waits for `prompts` groups."""
        return prompts

    @property
    def bound(self) -> int:
        """Most versions that a trained token may be older than the policy that trains on it."""
        return 0

    @property
    def stale_policy(self) -> OnStale:
        """What happens to groups at the staleness bound."""
        return "wait"


class Synchronous(_Schedule):
    """The engine samples a whole step, then the learner trains it."""

    type: Literal["synchronous"] = "synchronous"


class OneStepAhead(_Schedule):
    """While the learner trains a step, the engine samples the next with the weights of the one before."""

    type: Literal["ahead"]
    overlaps: ClassVar[bool] = True

    @property
    def bound(self) -> int:
        """One: the next step's completions are sampled before this step's update."""
        return 1


class _Bounded(_Schedule):
    """A schedule in which a completion may live through several versions."""

    oversample: Annotated[float, Field(ge=1.0)] = 2.0
    """Groups on their way, as a multiple of `rollout.prompts_per_step`: more keep the engine's batch full while long
    completions end, and make tokens older."""
    max_staleness: NonNegativeInt = 4
    """Most versions that a trained token may be older than the policy that trains on it."""
    on_stale: OnStale = "wait"

    def in_flight(self, prompts: int) -> int:
        """Problems that are on their way while the learner waits for `prompts` groups."""
        return math.ceil(prompts * self.oversample)

    @property
    def bound(self) -> int:
        """Most versions that a trained token may be older than the policy that trains on it."""
        return self.max_staleness

    @property
    def stale_policy(self) -> OnStale:
        """What happens at the bound."""
        return self.on_stale

    @model_validator(mode="after")
    def _reachable(self) -> _Bounded:
        if self.on_stale == "wait" and self.oversample > self.max_staleness + 1:
            raise ValueError(
                f"oversample must be at most max_staleness + 1 = {self.max_staleness + 1} with on_stale: wait, got "
                f"{self.oversample:g}: with more groups on their way some could not be trained in time; raise "
                "max_staleness, or set on_stale: drop or mask"
            )
        return self


class Partial(_Bounded):
    """The engine stops as soon as enough groups have finished; unfinished completions wait in the buffer with their
    tokens and go on at the next step, under its weights (Kimi k1.5, 2501.12599, section 2.6.2; APRIL, 2509.18521)."""

    type: Literal["partial"]
    tokens: PositiveInt | None = None
    """Most tokens that a completion grows by at a time (Kimi's budget), so that where completions are cut depends on
    nothing but token counts; None cuts them at the moment at which enough groups have finished (APRIL)."""


class Asynchronous(_Bounded):
    """The engine never stops; new weights reach it in the middle of completions (AReaL, 2505.24298; PipelineRL,
    2509.19128)."""

    type: Literal["asynchronous"]
    overlaps: ClassVar[bool] = True
    cache: Literal["keep", "recompute"] = "keep"
    """What new weights do to the keys and values of completions under way: those of the old weights are kept
    (PipelineRL), or computed again with the new ones (AReaL)."""


Schedule = Annotated[Synchronous | OneStepAhead | Partial | Asynchronous, Field(discriminator="type")]
