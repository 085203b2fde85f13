"""Chunked log-probabilities equal the full log-softmax in value, entropy and gradient, and cost no [N, V] memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvr.learn.logprobs import chunked_logprobs

TOKENS, HIDDEN, VOCABULARY = 23, 12, 41


def inputs(dtype: torch.dtype = torch.float64, tokens: int = TOKENS, bias: bool = True) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    offset = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    leaves = [one.to(dtype).requires_grad_() for one in (hidden, weight, offset)]
    return [*leaves[:2], leaves[2] if bias else None]


def targets(tokens: int = TOKENS) -> Tensor:
    """All of the vocabulary's ends, and some tokens twice."""
    return torch.tensor([0, VOCABULARY - 1, 5, 5, *range(1, tokens - 3)])[:tokens]


def full(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The plain way."""
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets(len(hidden))[:, None]).squeeze(1), entropy


@pytest.mark.parametrize("chunk", [1, 2, 7, 22, 23, 24, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_full_log_softmax_in_value_and_gradient(chunk: int, temperature: float, bias: bool) -> None:
    """In float64, for chunks that divide the tokens and chunks that do not, to 1e-12."""
    upstream = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    ours, theirs = inputs(bias=bias), inputs(bias=bias)
    logprobs, entropy = chunked_logprobs(*ours, targets(), temperature=temperature, chunk=chunk)
    expected, expected_entropy = full(*theirs, temperature)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=1e-12)
    (logprobs * upstream).sum().backward()
    (expected * upstream).sum().backward()
    same_gradients(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_compiled_equals_the_full_log_softmax_in_value_and_gradient(bias: bool) -> None:
    """In float64, for blocks of two widths, with the gradient of the entropy, to 1e-12."""
    upstream = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    ours, theirs = inputs(bias=bias), inputs(bias=bias)
    found = chunked_logprobs(*ours, targets(), temperature=0.7, chunk=7, compiled=True)
    for one, other in zip(found, expected := full(*theirs, 0.7), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    (found[0] * upstream + found[1]).sum().backward()
    (expected[0] * upstream + expected[1]).sum().backward()
    same_gradients(ours, theirs)


def same_gradients(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("alone", [True, False])
def test_the_entropy_has_the_gradient_of_the_full_softmax(chunk: int, alone: bool) -> None:
    """d H / d logits = -p (log p + H) / temperature, in float64 to 1e-12, alone and beside log-probabilities."""
    upstream = torch.linspace(2, -1, TOKENS, dtype=torch.float64)
    ours, theirs = inputs(), inputs()
    for leaves, (logprobs, entropy) in (
        (ours, chunked_logprobs(*ours, targets(), temperature=0.7, chunk=chunk)),
        (theirs, full(*theirs, 0.7)),
    ):
        assert leaves[0] is not None
        ((entropy * upstream).sum() + (0.0 if alone else (logprobs * (1 - upstream)).sum())).backward()
    same_gradients(ours, theirs)
    assert ours[0] is not None
    assert float(ours[0].grad.abs().max()) > 0.1  # type: ignore[union-attr]  # it has one


def test_gradient_equals_finite_differences() -> None:
    """torch's own check, which knows nothing of the formula."""
    generator = torch.Generator().manual_seed(2)
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((5, 3), (7, 3), (7,))
    ]

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return chunked_logprobs(hidden, weight, bias, torch.tensor([0, 6, 3, 3, 1]), temperature=0.9, chunk=2)[0]

    assert torch.autograd.gradcheck(function, leaves)


def test_a_tied_head_gets_both_gradients() -> None:
    """The embedding used as head: lookup and head each add their share."""
    embedding = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    grads = []
    for way in ("chunked", "full"):
        weight = embedding.clone().requires_grad_()
        hidden = torch.tanh(weight[targets().flip(0)])
        if way == "chunked":
            logprobs, _ = chunked_logprobs(hidden, weight, None, targets(), temperature=1.0, chunk=6)
        else:
            logprobs, _ = full(hidden, weight, None, 1.0)
        logprobs.sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


def test_no_tokens_give_zero_gradients() -> None:
    """A micro-batch of weight zero still touches every parameter, which DDP and FSDP2 wait for."""
    hidden, weight, bias = inputs(tokens=0)
    logprobs, entropy = chunked_logprobs(hidden, weight, bias, targets(0), temperature=1.0, chunk=4)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert hidden is not None
    assert hidden.grad.shape == (0, HIDDEN)


def test_frozen_inputs_get_no_gradient() -> None:
    hidden, weight, _ = inputs()
    assert weight is not None
    logprobs, _ = chunked_logprobs(hidden, weight.detach(), None, targets(), temperature=1.0, chunk=4)
    logprobs.sum().backward()
    assert weight.grad is None
    assert hidden is not None
    assert hidden.grad is not None


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_as_good_as_its_matrix_products(autocast: bool) -> None:
    """Softmax and sums are in float32: the error against float64 is that of rounding inputs and products only."""
    exact, _ = full(*inputs(), 1.0)
    if autocast:
        leaves = inputs(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logprobs, entropy = chunked_logprobs(*leaves, targets(), temperature=1.0, chunk=5)
    else:
        leaves = inputs(torch.bfloat16)
        logprobs, entropy = chunked_logprobs(*leaves, targets(), temperature=1.0, chunk=5)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert (logprobs - exact).abs().max() < 0.1
    logprobs.sum().backward()
    for leaf in leaves:
        assert leaf is not None
        assert leaf.grad.dtype == leaf.dtype


@pytest.mark.parametrize("autocast", [False, True])
def test_a_float32_head_over_bfloat16_weights_is_exact_to_float32(autocast: bool) -> None:
    """Given the same bfloat16 hidden states and weights, values and the entropy are those of float64 to 2e-6 where the
    bfloat16 head is off by more than 1e-3; gradients are float64's rounded once to bfloat16."""
    leaves = [leaf.detach().requires_grad_() for leaf in inputs(torch.bfloat16) if leaf is not None]
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected, expected_entropy = full(*exact_leaves, 0.7)
    (expected.sum() + expected_entropy.sum()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logprobs, entropy = chunked_logprobs(*leaves, targets(), temperature=0.7, chunk=5, head_dtype=torch.float32)
        narrow, _ = chunked_logprobs(*leaves, targets(), temperature=0.7, chunk=5)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0, atol=1e-5)
    assert (narrow.double() - expected).abs().max() > 1e-3
    (logprobs.sum() + entropy.sum()).backward()
    for leaf, exact in zip(leaves, exact_leaves, strict=True):
        assert leaf.grad is not None
        assert exact.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=2**-8, atol=1e-5)


def test_the_head_is_never_narrower_than_the_hidden_states() -> None:
    leaves = inputs(torch.float64)
    logprobs, _ = chunked_logprobs(*leaves, targets(), temperature=1.0, chunk=5, head_dtype=torch.float32)
    torch.testing.assert_close(logprobs, full(*leaves, 1.0)[0], rtol=0, atol=1e-12)


def test_the_entropy_of_a_flat_prediction_is_log_of_the_vocabulary() -> None:
    _, entropy = chunked_logprobs(
        torch.zeros(2, HIDDEN), torch.randn(VOCABULARY, HIDDEN), None, torch.tensor([0, 1]), temperature=1.0, chunk=1
    )
    assert entropy.tolist() == pytest.approx([math.log(VOCABULARY)] * 2, abs=1e-5)


def test_huge_logits_do_not_overflow() -> None:
    """Logits of +-1e4 have exact answers: log-probability 0 and entropy 0 for the largest, -2e4 for another."""
    hidden, weight = torch.tensor([[1e4], [1e4]]), torch.tensor([[1.0], [-1.0], [-1.0]]).requires_grad_()
    logprobs, entropy = chunked_logprobs(hidden, weight, None, torch.tensor([0, 1]), temperature=1.0, chunk=8)
    assert logprobs.tolist() == [0.0, -2e4]
    assert entropy.tolist() == [0.0, 0.0]
    logprobs.sum().backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("head_dtype", [None, torch.float32])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(head_dtype: torch.dtype | None) -> None:
    """The largest tensor that either pass makes has chunk x V numbers, not N x V, and no cast head is among them."""
    tokens, vocabulary, chunk = 256, 1000, 8
    dtype, width = (torch.float32, 4) if head_dtype is None else (torch.bfloat16, 16)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple) else (result,):
                if isinstance(one, Tensor) and one.dtype != torch.bfloat16:  # the gradient of a bfloat16 head is
                    self.numbers = max(self.numbers, one.numel())
            return result

    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    with Largest() as largest:
        logprobs, _ = chunked_logprobs(
            hidden, weight, None, torch.arange(tokens), temperature=0.9, chunk=chunk, head_dtype=head_dtype
        )
        logprobs.sum().backward()
    assert largest.numbers <= chunk * vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_a_fresh_process_is_a_few_blocks(dtype: str) -> None:
    """1,024 tokens at a vocabulary of 151,936 (hidden 16): one tensor of all logits would be 0.62 GB in float32; the
    peak above weights, hidden states and the head's gradient stays under 0.25 GB with 64 tokens' logits a block."""
    command = [sys.executable, "benchmarks/logprob_memory.py", "--part", "blocks", "--dtype", dtype]
    command += ["--tokens", "1024", "--hidden", "16", "--chunk", "64"]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert 0.03e9 < float(done.stdout) < 0.25e9
