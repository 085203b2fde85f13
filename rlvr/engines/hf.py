"""transformers' generate as an engine: slow and simple, the reference that vLLM is tested against.

One request owns one random generator, so its tokens depend on weights, prompt and seed alone: the rest of the batch
can only move the last bits of its logits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlvr.dtypes import DTYPES, DtypeName
from rlvr.engines.protocol import NO_VERSION, EngineError
from rlvr.engines.repetition import repeats
from rlvr.engines.stop_strings import check_fits, check_lengths, completion_text
from rlvr.engines.token_sampler import draw, next_number
from rlvr.engines.weights import Manifest, checked, read_manifest
from rlvr.records import Completion, FinishReason, Request, Sampling


@dataclass(slots=True)
class _Row:
    """One request while it is generated."""

    request: Request
    future: asyncio.Future[Completion]
    noise: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class HfEngine:
    """The `Engine` protocol on transformers; see `Engine` for what each verb promises."""

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: DtypeName = "float32",
        max_batch: int = 128,
        max_model_len: int | None = None,
        device: str | None = None,
    ) -> None:
        """`model` is a Hugging Face folder; `device` None is the first GPU, or the CPU where there is none."""
        self.model = Path(model)
        self._dtype = DTYPES[dtype]
        self._max_batch = max_batch
        self._max_model_len = max_model_len
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._policy: Any = None
        self._tokenizer: Any = None
        self._manifest: Manifest | None = None
        self._version = NO_VERSION
        self._waiting: list[_Row] = []
        self._holds = 0
        self._computing = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self._interrupted = False

    @property
    def version(self) -> int:
        """The weight version that is loaded."""
        return self._version

    @property
    def model_len(self) -> int:
        """Most tokens, prompt and completion together, of one request."""
        limit = int(self._running().config.max_position_embeddings)
        return min(limit, self._max_model_len or limit)

    async def start(self) -> None:
        """Load an own copy of the model."""
        if self._policy is not None:
            return
        self._manifest = read_manifest(self.model)
        policy: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=self._dtype)
        policy.to(self._device)
        policy.generation_config = GenerationConfig()  # the folder's own must not have a say
        self._tokenizer = AutoTokenizer.from_pretrained(self.model)
        self._policy = policy.eval().requires_grad_(False)

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; requests that wait at the same time run as one batch."""
        check_fits(request, self.model_len)
        noise = torch.Generator().manual_seed(request.seed)
        row = _Row(request, asyncio.get_running_loop().create_future(), noise)
        self._waiting.append(row)
        self._wake()
        try:
            return await row.future
        except asyncio.CancelledError:
            row.finish_reason = "abort"
            raise

    def _wake(self) -> None:
        if self._waiting and not self._holds and (self._worker is None or self._worker.done()):
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        """Generate batches, in the order in which requests came, until none waits."""
        await asyncio.sleep(0)  # requests that are made in the same breath join the first batch
        while self._waiting and not self._holds:
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            batch = [row for row in batch if not row.future.done()]
            if not batch:
                continue
            try:
                async with self._computing:
                    version = self._version
                    await asyncio.to_thread(self._generate, batch)
                for row in batch:
                    if not row.future.done():
                        row.future.set_result(self._completion(row, version))
            except Exception as error:  # for the callers to raise
                for row in batch:
                    if not row.future.done():
                        row.future.set_exception(EngineError(f"request {row.request.id!r}: {error}"))

    def _generate(self, rows: list[_Row]) -> None:
        width = max(len(row.request.prompt_ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row.request.prompt_ids) :] = torch.tensor(row.request.prompt_ids)
            mask[i, width - len(row.request.prompt_ids) :] = 1
        with torch.inference_mode():
            self._running().generate(
                ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(row.request.sampling.max_new_tokens for row in rows),
                    pad_token_id=0,
                ),
                logits_processor=LogitsProcessorList([_Draw(rows)]),
                stopping_criteria=StoppingCriteriaList([_Stop(rows, self._tokenizer, lambda: self._interrupted)]),
            )

    def _completion(self, row: _Row, version: int) -> Completion:
        assert row.finish_reason is not None
        stops = row.request.sampling.stop
        return Completion(
            ids=tuple(row.ids),
            behaviour_logprobs=tuple(row.logprobs),
            weight_version=(version,) * len(row.ids),
            text=completion_text(self._tokenizer, row.ids, stops),
            finish_reason=row.finish_reason,
        )

    async def interrupt(self) -> None:
        """End every request in flight with the tokens it has; the running batch ends after its next token."""
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            if not row.future.done():
                row.finish_reason = "abort"
                row.future.set_result(self._completion(row, self._version))
        self._interrupted = True
        async with self._computing:
            self._interrupted = False

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0."""
        check_lengths(sequences, self.model_len)
        async with self._computing:
            return await asyncio.to_thread(lambda: [self._logprobs(ids) for ids in sequences])

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        row = torch.tensor([list(ids)], device=self._device)
        with torch.inference_mode():
            logprobs = self._running()(row).logits[0, :-1].float().log_softmax(-1)
        return [0.0, *logprobs.gather(1, row[0, 1:, None])[:, 0].tolist()]

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Admit requests without running them until the block is left."""
        self._holds += 1
        try:
            yield
            await asyncio.sleep(0)  # tasks that the block created make their first step
        finally:
            self._holds -= 1
            self._wake()

    async def release(self) -> None:
        """Keeps its memory: nothing here is large."""

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights by name once the running batch has ended."""
        assert self._manifest is not None
        policy = self._running()
        async with self._computing:
            with torch.no_grad():
                for name, tensor in checked(self._manifest, tensors):
                    policy.get_parameter(name).copy_(tensor)
            self._version = version

    def _running(self) -> Any:
        if self._policy is None:
            raise EngineError("the engine is not running; call start() first, and nothing after close()")
        return self._policy

    def measured(self) -> dict[str, float]:
        """It measures nothing."""
        return {}

    async def close(self) -> None:
        """Forget the model; requests that wait or run raise `EngineError`."""
        self._policy = None
        for row in self._waiting:
            if not row.future.done():
                row.future.set_exception(EngineError(f"request {row.request.id!r}: the engine was closed"))
        self._waiting = []


class _Draw(LogitsProcessor):
    """Draws each row's next token with the row's own noise and leaves generate's argmax nothing else to choose."""

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = torch.empty_like(scores, dtype=torch.float32)
        for sampling in {_shape(row.request.sampling): row.request.sampling for row in self.rows}.values():
            same = [i for i, row in enumerate(self.rows) if _shape(row.request.sampling) == _shape(sampling)]
            logprobs[same] = processed_logprobs(input_ids[same], scores[same].float(), sampling)
        numbers = torch.zeros(len(self.rows), dtype=torch.float64)
        for i, row in enumerate(self.rows):
            if row.finish_reason is None and row.request.sampling.temperature != 0:
                numbers[i] = next_number(row.noise)
        drawn, likeliest = draw(logprobs.cpu(), numbers).tolist(), logprobs.argmax(-1).tolist()
        chosen = torch.full_like(scores, -torch.inf)
        for i, row in enumerate(self.rows):
            if row.finish_reason is not None:
                chosen[i, 0] = 0.0
                continue
            token = likeliest[i] if row.request.sampling.temperature == 0 else drawn[i]
            row.ids.append(token)
            row.logprobs.append(float(logprobs[i, token]))
            chosen[i, token] = 0.0
        return chosen


def _shape(sampling: Sampling) -> tuple[float, ...]:
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p


def processed_logprobs(ids: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
    """[B, V] log-probabilities of the distribution that is drawn from: temperature, min-p, top-k, top-p, as in vLLM."""
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    warpers: Any = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    warped: Tensor = warpers(ids, logits)
    return warped.log_softmax(-1)


class _Stop(StoppingCriteria):
    """Ends each row for its own reason."""

    def __init__(self, rows: list[_Row], tokenizer: Any, is_interrupted: Callable[[], bool]) -> None:
        self.rows, self.tokenizer, self.is_interrupted = rows, tokenizer, is_interrupted

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        for row in self.rows:
            if row.finish_reason is None:
                row.finish_reason = self._reason(row) or ("abort" if self.is_interrupted() else None)
        return torch.tensor([row.finish_reason is not None for row in self.rows], device=input_ids.device)

    def _reason(self, row: _Row) -> FinishReason | None:
        sampling = row.request.sampling
        if row.ids[-1] in sampling.stop_token_ids:
            return "stop"
        if sampling.stop:
            text = self.tokenizer.decode(row.ids, skip_special_tokens=True)
            if any(stop in text for stop in sampling.stop):
                return "stop"
        if len(row.ids) >= sampling.max_new_tokens:
            return "length"
        stop = sampling.repetition
        return "repetition" if stop is not None and repeats(row.ids, stop) else None
