"""Exports and loads the policy's parameters: a stream for engines, a Hugging Face folder for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

import rlvr.control as control
from rlvr.config.recipe import Lora
from rlvr.learn.backend import Backend
from rlvr.learn.lora import is_adapter, load_adapters, merged, save_adapters
from rlvr.learn.policy import Policy


class PolicyWeights:
    """The policy's current parameters, whole and with adapters merged; every call is collective."""

    def __init__(self, policy: Policy, backend: Backend, accelerator: Accelerator, lora: Lora | None) -> None:
        """``lora`` is the recipe's ``model.lora``."""
        self._policy, self._backend, self._accelerator, self._lora = policy, backend, accelerator, lora

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight by its name in a Hugging Face checkpoint, whole, one at a time; a tied head comes once, as the
        embedding. Collective where parameters are sharded: every rank must run through it."""
        for name, tensor in self._plain_parameters():
            yield from revert_weight_conversion(self._policy.model, {name: tensor}).items()

    @torch.no_grad()
    def _plain_parameters(self, adapters: dict[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each parameter whole, adapters merged into their layers; ``adapters`` collects those of rank 0 besides."""
        stream = self._backend.full_parameters(self._policy)
        if self._lora is None:
            return stream
        return merged(self._collecting(stream, {} if adapters is None else adapters), self._lora)

    def _collecting(
        self, stream: Iterator[tuple[str, Tensor]], adapters: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream:
            if is_adapter(name) and self._accelerator.is_main_process:
                adapters[name] = tensor.to("cpu", copy=True)
            yield name, tensor

    def writer(self, copy: bool) -> Callable[[Path], None]:
        """What writes the policy as it is now and the tokenizer into an empty folder, as a plain Hugging Face model
        with its adapters, if it has any, in a folder inside: on rank 0, with ``copy`` at any later time, without it
        before the next update, from the weights themselves. All ranks call this."""
        state: dict[str, Tensor] = {}
        adapters: dict[str, Tensor] = {}
        for name, tensor in self._plain_parameters(adapters):
            if self._accelerator.is_main_process:
                state[name] = tensor.to("cpu", copy=copy)
        if self._accelerator.is_main_process:
            saved = self._policy.model.state_dict().keys()
            state |= {n: b.to("cpu", copy=copy) for n, b in self._policy.model.named_buffers() if n in saved}

        def write(folder: Path) -> None:
            self._policy.save(folder, state)
            if adapters:
                save_adapters(self._policy.model, adapters, folder)

        return write

    def save(self, folder: Path) -> None:
        """Write the policy as a plain Hugging Face folder, with its tokenizer; rank 0 writes, all ranks call."""
        write = self.writer(copy=False)
        try:
            if self._accelerator.is_main_process:
                write(folder)
        finally:  # a disk that is full for rank 0 must not leave the others waiting
            control.wait()

    def load(self, folder: Path) -> None:
        """Take over the weights that `save` wrote; rank 0 reads them. The reference stays as it is."""
        values: dict[str, Tensor] = {}
        if self._accelerator.is_main_process and self._lora is not None:
            values = load_adapters(self._policy.model, folder)
        elif self._accelerator.is_main_process:
            saved = type(self._policy.model).from_pretrained(folder, dtype=next(self._policy.model.parameters()).dtype)
            values = dict(saved.named_parameters())
        self._backend.load_parameters(self._policy, values)
