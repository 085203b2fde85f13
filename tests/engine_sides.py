"""What the tests of the engines share: a learner's side of the tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr.engines.protocol import Engine
from rlvr.records import Completion, Request, Sampling
from rlvr.rollout.background import Background


class Learner:
    """A transformers model in float32 that scores as the learner does and whose weights are sent."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
        self.start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.named_parameters()

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [
            [0.0, *self.next_token_logprobs(ids)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()]
            for ids in sequences
        ]

    def rounding(self, sequences: Sequence[Sequence[int]]) -> float:
        """By how much float32 itself errs in `logprobs`: its largest distance from the same in float64."""
        ours = self.logprobs(sequences)
        self.model.double()
        exact = self.logprobs(sequences)
        self.model.float()  # as it was: each float32 number is one in float64
        return max(abs(a - b) for x, y in zip(ours, exact, strict=True) for a, b in zip(x, y, strict=True))

    def next_token_logprobs(self, ids: Sequence[int]) -> Tensor:
        """[T, V] for each position the log-probabilities of the next token."""
        return self.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)

    def perturb(self, names: Iterable[str], amplitude: float, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            tensor = self.parameters[name]
            tensor.add_(torch.randn(tensor.shape, generator=generator) * tensor.pow(2).mean().sqrt() * amplitude)

    def reset(self) -> None:
        self.model.load_state_dict(self.start)


class Sync:
    """An engine's verbs as plain calls."""

    def __init__(self, engine: Engine, background: Background) -> None:
        self.engine, self.background = engine, background

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.background.wait(self.engine.load_weights(tensors, version))

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.background.wait(self.engine.logprobs(sequences))

    def batch(self, requests: Sequence[Request]) -> list[Completion]:
        """All requests admitted before the first token."""

        async def held() -> list[Completion]:
            async with self.engine.hold():
                tasks = [asyncio.create_task(self.engine.generate(request)) for request in requests]
            return list(await asyncio.gather(*tasks))

        return self.background.wait(held())

    def one(self, prompt: Sequence[int], sampling: Sampling, seed: int = 0) -> Completion:
        return self.background.wait(self.engine.generate(request(prompt, sampling, seed)))


def request(prompt: Sequence[int], sampling: Sampling, seed: int = 0) -> Request:
    return Request(id=f"r{seed}", prompt_ids=tuple(prompt), sampling=sampling, seed=seed)
