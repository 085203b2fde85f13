"""Faster versions of three things that vLLM does slowly on a CPU, imported by `rlvr.engines.vllm.worker`.

vLLM 0.32 has fused normalisation kernels for CPUs but uses them only on GPUs, so each normalisation takes eight passes
of PyTorch operators. Its CPU sampler draws a random number for every token of the vocabulary, each with a scalar
exponential and two logarithms, and then counts how many tokens are likelier than the drawn one. In a decoding step of
SmolLM2-135M with 64 requests these took a third, a fifth and a twentieth of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm import ir
from vllm.platforms import current_platform
from vllm.v1.sample import sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

from rlvr.engines.token_sampler import draw, next_number
from rlvr.engines.vllm.settings import CPU_KERNELS

current_platform.import_kernels()


def _takes_one(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Whether the kernel is for these: 16 bits, all of the width, no gaps. In float32 the plain operators round where
    transformers does, so that engine and learner agree more closely."""
    plain = x.dtype == torch.float32 or variance_size is not None or weight is None or weight.dtype != x.dtype
    return not plain and x.is_contiguous()


def _takes_two(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _takes_one(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


@ir.ops.rms_norm.register_impl(CPU_KERNELS, supports_args=_takes_one, supported=current_platform.is_cpu())
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x / rms(x) * weight, rounded once."""
    output = torch.empty_like(x)
    torch.ops._C.rms_norm(output, x, weight, epsilon)
    return output


@ir.ops.fused_add_rms_norm.register_impl(
    CPU_KERNELS, supports_args=_takes_two, supported=current_platform.is_cpu(), inplace=True
)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of both normalised, and the sum; in place."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


_of_vllm = TopKTopPSampler.forward_cpu


def _sample(
    self: TopKTopPSampler,
    logits: Tensor,
    generators: dict[int, torch.Generator],
    k: Tensor | None,
    p: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`TopKTopPSampler.forward_cpu` with one random number for a request, from its own generator if it has one."""
    if self.logprobs_mode != "processed_logprobs" or self.use_fp64_gumbel:
        return _of_vllm(self, logits, generators, k, p)
    logprobs = apply_top_k_top_p(logits, k, p).log_softmax(dim=-1, dtype=torch.float32)
    numbers = torch.rand(len(logprobs), dtype=torch.float64)
    for row, noise in generators.items():
        numbers[row] = next_number(noise)
    return draw(logprobs, numbers), logprobs


TopKTopPSampler.forward_cpu = _sample  # type: ignore[method-assign]  # there is no setting for it


def _no_ranks(x: Tensor, values: Tensor) -> Tensor:
    """`batched_count_greater_than`, whose result nobody reads here."""
    return torch.zeros(len(x), dtype=torch.int64)


sampler.batched_count_greater_than = _no_ranks
