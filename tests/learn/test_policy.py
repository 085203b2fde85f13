"""The policy: log-probabilities equal the model's own, packed samples do not see each other, bad models are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)

from rlvr.config.algorithm import TokenMean
from rlvr.config.recipe import Model
from rlvr.learn.attention import NAME
from rlvr.learn.packing import pack
from rlvr.learn.policy import Policy, PolicyError
from rlvr.records import MicroBatch, TrainingSample
from tests.helpers import make_tiny_model
from tests.learn.conftest import random_samples, samples_of_groups, tiny_llama

Folder = Callable[..., str]


def logprobs(policy: Policy, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
    return policy(batch.ids, batch.positions, batch.targets, batch.loss_mask, temperature, batch.layout)[0]


def alone(model: torch.nn.Module, ids: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """[T - 1] log-probabilities of one sequence by the model's own logits."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1] / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[1:, None]).squeeze(1)


def of_sample(values: Tensor, batch: MicroBatch, place: int, tokens: int) -> Tensor:
    """The values [T - 1] of one sample's positions, wherever they stand."""
    if batch.layout is None:
        return values[batch.sequence == place]
    return values.flatten()[batch.layout.rows[place, : tokens - 1]]


@pytest.mark.parametrize(
    ("mode", "attention"),
    [("shared", NAME), ("bucketed", "sdpa"), ("bucketed", "eager"), ("packed", "sdpa"), ("packed", "eager")],
)
def test_samples_in_company_equal_samples_alone(tied: bool, mode: str, attention: str) -> None:
    """In float64, packed, padded and with prompts that stand once: the log-probability of each token is that of its
    sequence run alone through the model's own forward pass, to 1e-12 (eager attention has its softmax in float32); the
    last token of each sample is the padding token itself."""
    tolerance = 1e-12 if attention == "sdpa" else 1e-5
    model = tiny_llama(tied=tied).double()
    model.set_attn_implementation(attention)
    policy = Policy(model, head_chunk=7)
    samples = samples_of_groups(9)
    for batch in pack(samples, TokenMean(), 60, mode):
        ours = logprobs(policy, batch, 0.7)
        for place, index in enumerate(batch.index):
            mask = torch.tensor(samples[index].loss_mask[1:], dtype=torch.float64)
            expected = alone(model, samples[index].ids, 0.7) * mask
            torch.testing.assert_close(of_sample(ours, batch, place, len(mask) + 1), expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_prompts_that_stand_once_have_the_gradient_of_prompts_that_stand_often(tied: bool) -> None:
    """In float64 the gradient of a loss over all tokens is the same to 1e-12 of its size, however the samples lie."""
    samples = samples_of_groups(11)
    gradients = {}
    for mode, limit in (("bucketed", 10_000), ("shared", 10_000), ("shared", 50)):
        model = tiny_llama(tied=tied)
        for layer in model.model.layers:  # Llama's own norms compute in float32
            layer.input_layernorm, layer.post_attention_layernorm = torch.nn.RMSNorm(32), torch.nn.RMSNorm(32)
        model.double().set_attn_implementation(NAME)
        policy = Policy(model, head_chunk=7)
        for batch in pack(samples, TokenMean(), limit, mode):
            (logprobs(policy, batch) * (1.0 + batch.targets) * batch.loss_mask).sum().backward()
        gradients[mode, limit] = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    whole = gradients["bucketed", 10_000]
    for gradient in gradients.values():
        assert (gradient - whole).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.parametrize("mode", ["bucketed", "packed"])
def test_a_sample_does_not_depend_on_its_neighbours(mode: str) -> None:
    """Changing one sample's tokens, or the padding, changes no log-probability of the others."""
    policy = Policy(tiny_llama(tied=True).double(), head_chunk=1000)
    (batch,) = pack(random_samples(6), TokenMean(), 10_000, mode)
    before = logprobs(policy, batch)
    changed = batch.ids.clone()
    changed[batch.sequence == 2] = 50
    changed[batch.sequence == -1] = 60
    after = policy(changed, batch.positions, batch.targets, batch.loss_mask, 1.0)[0]
    others = batch.sequence != 2
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-13)
    assert (after[~others] - before[~others]).abs().max() > 1e-3


def test_masked_positions_are_zero_and_have_no_gradient() -> None:
    policy = Policy(tiny_llama(tied=False).double(), head_chunk=4)
    (batch,) = pack(random_samples(3), TokenMean(), 10_000, "bucketed")
    values, entropy = policy(batch.ids, batch.positions, batch.targets, batch.loss_mask, 1.0)
    hidden = batch.loss_mask == 0
    assert hidden.any()
    assert torch.equal(values[hidden], torch.zeros_like(values[hidden]))
    assert torch.equal(entropy[hidden], torch.zeros_like(values[hidden]))
    values[hidden].sum().backward()
    assert all(float(p.grad.abs().max()) == 0.0 for p in policy.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_nothing() -> None:
    (batch,) = pack(random_samples(4), TokenMean(), 10_000, "bucketed")
    gradients = []
    for checkpointing in (False, True):
        policy = Policy(tiny_llama(tied=True).double(), head_chunk=8, gradient_checkpointing=checkpointing)
        logprobs(policy, batch).sum().backward()
        gradients.append([p.grad for p in policy.parameters()])
        assert policy.model.is_gradient_checkpointing is checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compiled_layers_compute_the_same(model_folder: Folder) -> None:
    """Compiled = as written, in value and gradient, for shared prompts and with recomputed activations."""
    config = Model(path=model_folder(tied=True), gradient_checkpointing=True)
    (batch,) = pack(samples_of_groups(5, groups=2), TokenMean(), 10_000, "shared")
    results = []
    for compiled in (False, True):
        policy = Policy.load(config.model_copy(update={"compile": compiled}), head_chunk=8)
        assert [layer._compiled_call_impl is not None for layer in policy.model.model.layers] == [compiled] * 2
        values = logprobs(policy, batch)
        values.sum().backward()
        results.append([values.detach(), *(p.grad for p in policy.parameters())])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_autocast_computes_in_bfloat16_over_float32_weights(model_folder: Folder) -> None:
    policy = Policy.load(Model(path=model_folder(tied=True), autocast="bfloat16"), head_chunk=64)
    exact = Policy.load(Model(path=model_folder(tied=True)), head_chunk=64)
    (batch,) = pack(random_samples(4), TokenMean(), 10_000, "packed")
    ours, theirs = logprobs(policy, batch), logprobs(exact, batch)
    assert ours.dtype == torch.float32
    assert next(policy.parameters()).dtype == torch.float32
    assert 1e-4 < (ours - theirs).abs().max() < 0.3
    ours.sum().backward()
    assert {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}


def test_autocast_keeps_no_copies_of_weights(model_folder: Folder) -> None:
    """Two products with one weight cast it twice: no 16-bit copy of it outlives its product."""
    policy = Policy.load(Model(path=model_folder(tied=False), autocast="bfloat16"), head_chunk=64)
    weight = policy.model.get_output_embeddings().weight
    with policy._precision():
        products = [torch.mul(weight @ torch.ones(weight.shape[1], 1), 1.0) for _ in range(2)]
    assert [product.dtype for product in products] == [torch.bfloat16] * 2
    first, second = (product.grad_fn.next_functions[0][0].next_functions[0][0] for product in products)
    assert [first.name(), second.name()] == ["ToCopyBackward0"] * 2
    assert first is not second


def test_flash_attention_is_checked_by_another_kernel_on_the_cpu() -> None:
    """It has none for CPUs, where a model is loaded and its head checked; its packing is checked on the GPU."""
    model = tiny_llama(tied=True)
    model.config._attn_implementation = "flash_attention_2"
    policy = Policy(model, head_chunk=8)
    assert model.config._attn_implementation == "flash_attention_2"
    policy.check_packing("bucketed")
    with pytest.raises(PolicyError, match="'flash_attention_2' needs a GPU, and torch sees none; use sdpa"):
        policy.check_packing("packed")


def test_bfloat16_weights(model_folder: Folder) -> None:
    policy = Policy.load(Model(path=model_folder(tied=False), dtype="bfloat16"), head_chunk=64)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    (batch,) = pack(random_samples(4), TokenMean(), 10_000, "bucketed")
    assert torch.isfinite(logprobs(policy, batch)).all()


def test_a_saved_policy_is_a_plain_hugging_face_folder(tmp_path: Path, tied: bool) -> None:
    source = make_tiny_model(tmp_path / "model", tied=tied)
    policy = Policy.load(Model(path=str(source)), head_chunk=64)
    policy.save(tmp_path / "saved", dict(policy.model.named_parameters()))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for (name, ours), (other, theirs) in zip(policy.model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is tied


def test_biases_in_the_layers_are_no_obstacle(tmp_path: Path) -> None:
    """Qwen2 has biases in its attention."""
    source = make_tiny_model(tmp_path / "qwen", qwen=True)
    policy = Policy.load(Model(path=str(source)), head_chunk=64)
    policy.check_packing("packed")
    ids = (5, 6, 7, 8, 9, 2)
    sample = TrainingSample(
        ids=ids, loss_mask=(0, 1, 1, 1, 1, 1), behaviour_logprobs=(0.0,) * 6, advantage=1.0, group=0
    )  # fmt: skip
    (batch,) = pack([sample], TokenMean(), 100, "packed")
    torch.testing.assert_close(logprobs(policy, batch)[0], alone(policy.model, ids), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_folder_that_is_not_there_is_named() -> None:
    for path in ("/there/is/nothing", "./nothing", "a/b/c"):
        with pytest.raises(PolicyError, match=f"model.path: there is no folder '{path}'"):
            Policy.load(Model(path=path), head_chunk=8)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be loaded as a causal language model"):
        Policy.load(Model(path=str(tmp_path)), head_chunk=8)


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "model")
    tiny_llama(tied=True).save_pretrained(source)  # 97 rows under a tokenizer of 128
    with pytest.raises(PolicyError, match=r"knows 128 tokens .*, the model only 97"):
        Policy.load(Model(path=str(source)), head_chunk=8)


def test_a_head_that_scales_its_logits_is_refused() -> None:
    """Granite divides its logits: the plain head's log-probabilities would be wrong without a sign of it."""
    config = GraniteConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    with pytest.raises(PolicyError, match="changes its logits after the linear head"):
        Policy(GraniteForCausalLM(config), head_chunk=8)


def test_a_soft_cap_is_refused_by_its_setting_even_where_logits_are_too_small_to_show_it() -> None:
    model = tiny_llama(tied=True)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(PolicyError, match="caps its logits softly"):
        Policy(model, head_chunk=8)


class Capped(LlamaForCausalLM):
    """A model of the user's own whose code, not its config, caps the logits."""

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # as transformers has it
        output = super().forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output


def test_a_soft_cap_in_code_is_refused() -> None:
    model = tiny_llama(tied=True)
    model.__class__ = Capped
    with pytest.raises(PolicyError, match="changes its logits after the linear head"):
        Policy(model, head_chunk=8)


def test_attention_that_crosses_packed_samples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an architecture that does not know that positions restart."""
    policy = Policy(tiny_llama(tied=True), head_chunk=8)
    policy.check_packing("packed")
    plain = policy.model.base_model.forward

    def blind(input_ids: Tensor, position_ids: Tensor, **rest: object) -> object:
        return plain(input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **rest)

    monkeypatch.setattr(policy.model.base_model, "forward", blind)
    with pytest.raises(PolicyError, match="samples in one row are not computed as"):
        policy.check_packing("packed")


def test_models_that_cannot_share_prompts_are_refused() -> None:
    """Attention that is not ours does not know of the layout; a window would be a window over the row."""
    model = tiny_llama(tied=True)
    policy = Policy(model, head_chunk=8)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with pytest.raises(PolicyError, match="'shared' does not work with LlamaForCausalLM"):
            policy.check_packing("shared")
    model.set_attn_implementation(NAME)
    policy.check_packing("shared")
    model.config.sliding_window = 64
    with pytest.raises(PolicyError, match="a window of 64 tokens; use packing: bucketed"):
        policy.check_packing("shared")


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    """GPT-2 drops by default; two passes in training mode must give the same log-probabilities."""
    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    policy = Policy.load(Model(path=str(tmp_path)), head_chunk=8)
    assert policy.model.training
    (batch,) = pack(random_samples(4), TokenMean(), 10_000, "bucketed")
    assert torch.equal(logprobs(policy, batch), logprobs(policy, batch))


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_a_float32_head_reaches_the_policy_from_the_recipe(model_folder: Callable[..., str], autocast: str) -> None:
    """Log-probabilities of bfloat16 layers with ``head_dtype: float32`` are those of their own hidden states in float64
    through the same weights to 1e-5; with ``same`` they are off by more than 1e-3."""
    config = Model(path=model_folder(tied=False), dtype="bfloat16", autocast=autocast)
    ids = torch.arange(3, 40)[None]
    positions, mask = torch.arange(36)[None], torch.ones(1, 36)
    errors = []
    for head_dtype in ("float32", "same"):
        policy = Policy.load(config.model_copy(update={"head_dtype": head_dtype}), head_chunk=8)
        with torch.no_grad():
            ours, _ = policy(ids[:, :-1], positions, ids[:, 1:], mask, 1.0)
            with policy._precision():
                hidden = policy._hidden(ids[:, :-1], positions)
            logits = hidden.double() @ policy.model.get_output_embeddings().weight.double().t()
        expected = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).squeeze(2)
        errors.append(float((ours - expected).abs().max()))
    assert errors[0] < 1e-5
    assert errors[1] > 1e-3
