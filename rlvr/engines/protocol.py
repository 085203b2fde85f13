"""The engine protocol: the few verbs that the rest of rlvr needs from whatever samples tokens.

| verb             | consumes                  | produces                          | waits for                      |
|------------------|---------------------------|-----------------------------------|--------------------------------|
| generate         | a Request                 | a Completion                      | a slot in the running batch    |
| hold             | nothing                   | a stop to scheduling              | nothing; undone by leaving it  |
| interrupt        | nothing                   | what each request has so far      | nothing                        |
| logprobs         | token ids                 | their log-probabilities           | a slot in the running batch    |
| release          | nothing                   | memory for the learner            | nothing                        |
| load_weights     | named tensors, a version  | an engine that samples from them  | nothing in flight (or pauses)  |

Everything is asynchronous and single-process from the caller's side: an engine may live in a child process or behind
a URL, the caller cannot tell. All calls come from one asyncio loop on rank 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from torch import Tensor

from rlvr.errors import RlvrError
from rlvr.records import Completion, Request

NO_VERSION = -1
"""The weight version of an engine that `load_weights` was never called on: its weights are the model folder's."""


class EngineError(RlvrError, RuntimeError):
    """The engine died, refused weights, or serves others than it was given; the message says what to do."""


class EngineDied(EngineError):
    """The engine is gone or no longer responds; another start may help."""


class Engine(Protocol):
    """Samples from the policy."""

    @property
    def version(self) -> int:
        """The weight version that the engine itself reports; `NO_VERSION` before the first `load_weights`."""

    @property
    def model_len(self) -> int:
        """Most tokens, prompt and completion together, that one request may have."""

    async def start(self) -> None:
        """Bring the engine up with the weights of the model folder. Raises `EngineError` with the reason."""

    async def generate(self, request: Request) -> Completion:
        """Sample one completion. A cancelled call aborts its request in the engine."""

    def hold(self) -> AbstractAsyncContextManager[None]:
        """Admit requests without running them until the block is left.

        With a whole step admitted before the first token is sampled, batches are the same in each repetition of a
        run, and with them the last bits of every log-probability.
        """

    async def interrupt(self) -> None:
        """End every request in flight: each `generate` returns the tokens it has, maybe none, with finish reason
        ``abort``. Returns when the engine has let go of them."""

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0."""

    async def release(self) -> None:
        """Give back what device memory it can until the next `load_weights`; nothing may be asked meanwhile."""

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights, by Hugging Face parameter names, clear cached prefixes, and take on `version`.

        Raises `EngineError` if the version that the engine reports afterwards is not `version`.
        """

    def measured(self) -> dict[str, float]:
        """``engine/...`` metrics of what it did since the last call, from any thread; empty if it measures nothing."""

    async def close(self) -> None:
        """End the engine and its processes; safe to call twice and after a crash."""
