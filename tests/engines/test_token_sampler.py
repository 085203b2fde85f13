"""A draw is where a number falls among probabilities laid end to end; vLLM's kernels for CPUs compute what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from rlvr.engines.token_sampler import draw, next_number
from rlvr.engines.vllm import cpu_kernels as vllm_cpu_kernels


@pytest.mark.parametrize(
    ("number", "token"),
    [(0.0, 1), (0.2499, 1), (0.25, 2), (0.7499, 2), (0.75, 4), (1 - 2**-53, 4)],
)
def test_by_hand(number: float, token: int) -> None:
    """Of (0, 1/4, 1/2, 0, 1/4, 0) the borders are 0, 1/4, 3/4 and 1; tokens of probability 0 are never drawn."""
    logprobs = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).log()
    assert draw(logprobs, torch.tensor([number], dtype=torch.float64)).tolist() == [token]


@pytest.mark.slow
def test_numbers_on_a_grid_hit_each_token_as_often_as_its_probability_says() -> None:
    """Over n numbers at equal distances a token of probability p is drawn p n times, give or take one: for 20,000
    tokens, most of them rare."""
    n = 400_000
    logprobs = (4 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    numbers = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    hits = torch.bincount(
        torch.cat([draw(logprobs.expand(len(part), -1), part) for part in numbers.split(500)]), minlength=20_000
    )
    assert (hits - n * logprobs.double().exp()).abs().max() <= 1.01


def test_rows_do_not_see_each_other() -> None:
    logprobs = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    numbers = torch.rand(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = [int(draw(logprobs[i : i + 1], numbers[i : i + 1])) for i in range(5)]
    assert draw(logprobs, numbers).tolist() == alone


def test_vllms_sampler_draws_so_after_its_own_top_k_and_top_p() -> None:
    """A row with a generator takes its number from there; the log-probabilities returned are those drawn from."""
    sampler = TopKTopPSampler("processed_logprobs")
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    seeds = {row: torch.Generator().manual_seed(40 + row) for row in range(3)}
    tokens, logprobs = sampler.forward_cpu(logits.clone(), seeds, torch.tensor([50, 5, 1]), None)
    assert logprobs is not None
    assert [int(row.isfinite().sum()) for row in logprobs] == [50, 5, 1]
    numbers = torch.stack([next_number(torch.Generator().manual_seed(40 + row)) for row in range(3)])
    assert tokens.tolist() == draw(logprobs, numbers).tolist()
    assert tokens[2] == logits[2].argmax()
    torch.testing.assert_close(logprobs[0], logits[0].log_softmax(-1), rtol=0, atol=1e-6)


def test_other_kinds_of_logprobs_are_left_to_vllm() -> None:
    _, raw = TopKTopPSampler("raw_logprobs").forward_cpu(torch.randn(2, 9), {}, None, None)
    assert raw is None


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """By its definition, in float64."""
    wide = x.double()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_norms_are_what_they_say(rows: int, dtype: torch.dtype, rounding: float) -> None:
    """To one rounding of the result: what is normalised is the exact sum, what is kept of it is rounded."""
    generator = torch.Generator().manual_seed(rows)
    x, residual = (torch.randn(rows, 96, generator=generator).to(dtype) for _ in range(2))
    weight = torch.rand(96, generator=generator).add(0.5).to(dtype)
    alone = vllm_cpu_kernels.rms_norm.impl_fn(x, weight, 1e-5)
    torch.testing.assert_close(alone.double(), norm(x.double(), weight), rtol=rounding, atol=1e-9)
    total = x.double() + residual.double()
    normed, kept = vllm_cpu_kernels.fused_add_rms_norm.impl_fn(x.clone(), residual.clone(), weight, 1e-5)
    assert torch.equal(kept, total.to(dtype))
    torch.testing.assert_close(normed.double(), norm(total, weight), rtol=2 * rounding, atol=1e-9)


def test_what_the_kernels_cannot_read_goes_to_vllms_plain_operators() -> None:
    x, weight = torch.randn(4, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    one, two = vllm_cpu_kernels.rms_norm.supports_args, vllm_cpu_kernels.fused_add_rms_norm.supports_args
    assert one(x, weight, 1e-5)
    assert not one(x.float(), weight.float(), 1e-5)
    assert not one(x.t(), weight, 1e-5)
    assert not one(x, None, 1e-5)
    assert not one(x, weight.float(), 1e-5)
    assert not one(x, weight, 1e-5, 4)
    assert two(x, x, weight, 1e-5)
    assert not two(x, x.t(), weight, 1e-5)
