"""The CPU's causal attention equals torch's in value and gradient, in any number of blocks, and is really used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvr.config.algorithm import TokenMean
from rlvr.config.recipe import Model
from rlvr.learn import attention
from rlvr.learn.packing import pack
from rlvr.learn.policy import Policy
from tests.learn.conftest import random_samples, samples_of_groups


def inputs(heads: int, key_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as models make them: views with heads behind positions."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 13, count, 8) for count in (heads, key_heads, key_heads)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]


def gradients(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(output, leaves, upstream.to(output.dtype)))


def plain(leaves: list[Tensor], scale: float) -> Tensor:
    """Attention by its definition."""
    query, key, value = leaves
    key, value = (one.repeat_interleave(query.shape[1] // key.shape[1], 1) for one in (key, value))
    scores = scale * query @ key.mT
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ value


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scores", [1, 200, 1000, 1 << 22])
def test_value_and_gradient_equal_the_definition(
    heads: int, key_heads: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 to 1e-12, with heads that share keys, from one row of queries a block to all in one."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    ours, theirs = inputs(heads, key_heads, torch.float64), inputs(heads, key_heads, torch.float64)
    got, expected = attention.causal_attention(*ours, 0.3), plain(theirs, 0.3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(got, ours), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_in_bfloat16_its_gradient_is_as_good_as_torchs() -> None:
    """Distance from the gradient in float64: at most a tenth more than that of torch's own backward pass."""
    exact = inputs(6, 2, torch.bfloat16)
    wide = [leaf.detach().double().requires_grad_() for leaf in exact]
    reference = gradients(plain(wide, 0.3), wide)
    ours = gradients(attention.causal_attention(*exact, 0.3), exact)
    torchs = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True)
    for mine, other, truth in zip(ours, gradients(torchs, exact), reference, strict=True):
        assert (mine.double() - truth).norm() <= 1.1 * (other.double() - truth).norm()


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("scores", [1, 200, 1 << 20])
def test_shared_prompts_equal_the_definition_on_whole_samples(
    heads: int, key_heads: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 to 1e-12, value and gradient: positions that stand once = each sample whole, of which each position is
    taken from one row, in any number of blocks; with samples that share nothing among them."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    (batch,) = pack(samples_of_groups(9, groups=4), TokenMean(), 10_000, "shared")
    assert batch.layout is not None
    assert {bool(shared) for _, _, _, shared, _ in batch.layout.blocks.tolist()} == {True, False}
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, batch.tokens, count, 8) for count in (heads, key_heads, key_heads)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    ours = attention.shared_attention(query, key, value, batch.layout, 0.3)
    whole = plain([one[0, :, batch.layout.rows].transpose(0, 1) for one in (query, key, value)], 0.3)
    expected = whole.transpose(1, 2).flatten(0, 1)[batch.layout.owners][None]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compiled_layers_that_recompute_keep_attention(model_folder: Callable[..., str]) -> None:
    """Transformers' checkpointing computes attention twice in each layer; the compiler's choice keeps its output."""
    (batch,) = pack(samples_of_groups(6, groups=2), TokenMean(), 10_000, "shared")
    found = []
    for compiled in (False, True):
        settings = Model(path=model_folder(tied=True), gradient_checkpointing=True, compile=compiled)
        policy = Policy.load(settings, head_chunk=64)
        inputs = batch.ids, batch.positions, batch.targets, batch.loss_mask, 1.0, batch.layout
        policy(*inputs)[0].sum().backward()  # what is compiled is tried out meanwhile
        with torch.profiler.profile() as profile:
            policy(*inputs)[0].sum().backward()
        counts = {event.key: event.count for event in profile.key_averages()}
        found.append((counts["rlvr::shared_attention"], counts["rlvr::shared_attention_backward"]))
    layers = policy.model.config.num_hidden_layers
    assert found == [(2 * layers, layers), (layers, layers)]


@pytest.mark.slow
def test_what_is_kept_is_not_computed_again(model_folder: Callable[..., str]) -> None:
    """A linear layer takes three products: the output, and the gradients of input and weight. With all activations kept
    there are no others in a layer of Llama; the fewer are kept, the more outputs are computed again."""
    (batch,) = pack(samples_of_groups(6, groups=2), TokenMean(), 10_000, "shared")
    products = []
    for kept in (1.0, 0.5, 0.0):
        torch._dynamo.reset()  # a layer that was compiled for one share would serve the next
        settings = Model(path=model_folder(tied=True), gradient_checkpointing=True, compile=True, kept_activations=kept)
        policy = Policy.load(settings, head_chunk=1_000)
        inputs = batch.ids, batch.positions, batch.targets, batch.loss_mask, 1.0, batch.layout
        policy(*inputs)[0].sum().backward()
        with torch.profiler.profile() as profile:
            policy(*inputs)[0].sum().backward()
        products.append(
            sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
        )
    in_layers, of_head = 7 * 3 * policy.model.config.num_hidden_layers, 4
    assert products[0] == in_layers + of_head < products[1] < products[2]


@pytest.mark.parametrize(("dtype", "autocast"), [("bfloat16", "none"), ("float32", "bfloat16")])
def test_models_in_bfloat16_on_a_cpu_use_it(
    model_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, autocast: str
) -> None:
    """Each layer calls it once in training, never without gradients, and nothing of it is written with the model."""
    calls = []
    real = attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda *args: calls.append(1) or real(*args))
    folder = model_folder(tied=True)
    policy = Policy.load(Model.model_validate({"path": folder, "dtype": dtype, "autocast": autocast}), head_chunk=64)
    assert calls == []  # the checks at loading run without gradients
    (batch,) = pack(random_samples(4), TokenMean(), 10_000, "bucketed")
    logprobs, _ = policy(batch.ids, batch.positions, batch.targets, batch.loss_mask, 1.0)
    assert len(calls) == 2
    with torch.no_grad():
        again, _ = policy(batch.ids, batch.positions, batch.targets, batch.loss_mask, 1.0)
    torch.testing.assert_close(again, logprobs, rtol=0, atol=1e-6)
    policy.save(tmp_path / "saved", dict(policy.model.named_parameters()))
    assert attention.NAME not in json.dumps(json.loads((tmp_path / "saved" / "config.json").read_text()))


@pytest.mark.parametrize("packing", ["bucketed", "packed"])
def test_float32_and_packed_rows_go_to_torch(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    """A mask or another type is not for it."""

    def refuse(*_: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(attention, "causal_attention", refuse)
    dtype = "float32" if packing == "bucketed" else "bfloat16"
    policy = Policy.load(Model(path=model_folder(tied=True), dtype=dtype), head_chunk=64)
    (batch,) = pack(random_samples(4), TokenMean(), 10_000, packing)
    logprobs, _ = policy(batch.ids, batch.positions, batch.targets, batch.loss_mask, 1.0)
    logprobs.sum().backward()
