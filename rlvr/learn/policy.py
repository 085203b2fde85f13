"""The policy: a causal language model whose forward pass gives log-probabilities, never logits.

`Policy.forward` is the only place where parameters are touched, so that whatever wraps it (DDP's hooks, FSDP2's
resharding) sees every use. Assumptions about the model are checked on the loaded weights: that its
logits are the plain linear head of its last hidden state, and that packed samples do not see each
other.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlvr.config.algorithm import TokenMean
from rlvr.config.recipe import Model
from rlvr.dtypes import DTYPES
from rlvr.errors import InputError
from rlvr.hub import may_be_hub_name
from rlvr.learn import attention
from rlvr.learn.logprobs import chunked_logprobs
from rlvr.learn.lora import LoraError, add_adapters
from rlvr.learn.packing import Mode, pack
from rlvr.records import SharedPrompts, TrainingSample

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference, relative to the largest value, that rounding explains."""


class PolicyError(InputError, ValueError):
    """A model cannot be loaded or trained; the message names the model, the reason and what to do."""


class Policy(nn.Module):
    """A causal language model under training, or frozen as a reference.

    Raises `PolicyError` for a model whose head is not one linear layer on the last hidden state.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        head_chunk: int,
        head_dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.head_chunk, self.head_dtype, self.autocast, self.compiled = head_chunk, head_dtype, autocast, compiled
        # FSDP's automatic wrapping reads this name from the module that it is given
        self._no_split_modules = sorted(model._no_split_modules or ())
        head, body = model.get_output_embeddings(), model.base_model
        if not isinstance(head, nn.Linear) or body is model:
            raise PolicyError(
                f"{self._name()} has no linear head over a base model: this architecture cannot be trained"
            )
        if isinstance(embedding := model.get_input_embeddings(), nn.Embedding):
            # torch gives the padding token's row no gradient; often that is the end of text, which chats are full of
            embedding.padding_idx = None
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._check_head()
        model.train()

    @classmethod
    def load(cls, config: Model, *, head_chunk: int) -> Policy:
        """The model of a recipe, from a folder or the hub. Raises `PolicyError` with the reason."""
        path = config.path
        if not Path(path).exists() and not may_be_hub_name(path):
            raise PolicyError(
                f"model.path: there is no folder {path!r}; give a Hugging Face folder or a name on the hub"
            )
        try:
            settings = AutoConfig.from_pretrained(path)
            _switch_off_dropout(settings)
            model = AutoModelForCausalLM.from_pretrained(
                path, config=settings, dtype=DTYPES[config.dtype], attn_implementation=config.attention
            )
            if config.attention == "sdpa":
                model.set_attn_implementation(attention.NAME)
            if config.lora is not None:
                add_adapters(model, config.lora)
            if config.compile:
                compile_layers(model, kept=config.kept_activations if config.gradient_checkpointing else 1.0)
            tokenizer = AutoTokenizer.from_pretrained(path) if _has_tokenizer(path) else None
        except LoraError as error:
            raise PolicyError(str(error)) from error
        except (OSError, ImportError, ValueError) as error:
            raise PolicyError(f"model.path: {path!r} cannot be loaded as a causal language model: {error}") from error
        rows = _vocabulary(model)
        # Added tokens beyond the embedding occur in sound models (markers of images), ordinary ones do not
        if tokenizer is not None and max(tokenizer.vocab_size, (tokenizer.eos_token_id or 0) + 1) > rows:
            raise PolicyError(
                f"model.path: the tokenizer of {path!r} knows {tokenizer.vocab_size} tokens (end of text is "
                f"{tokenizer.eos_token_id}), the model only {rows}: they do not belong together"
            )
        return cls(
            model,
            head_chunk=head_chunk,
            head_dtype=None if config.head_dtype == "same" else DTYPES[config.head_dtype],
            autocast=None if config.autocast == "none" else DTYPES[config.autocast],
            gradient_checkpointing=config.gradient_checkpointing and not config.compile,
            compiled=config.compile,
            tokenizer=tokenizer,
        )

    def forward(
        self,
        ids: Int[Tensor, "B L"],
        positions: Int[Tensor, "B L"],
        targets: Int[Tensor, "B L"],
        loss_mask: Float[Tensor, "B L"],
        temperature: float,
        layout: SharedPrompts | None = None,
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Log-probability of each target at ``temperature`` and entropy of its prediction, in nats;
        both 0 where ``loss_mask`` is 0. Rows may hold several samples if positions restart at 0 with each, or share
        prompts as ``layout`` says."""
        head = self.model.get_output_embeddings()
        with self._precision():
            hidden = self._hidden(ids, positions, layout)
            trained = loss_mask.flatten().nonzero().squeeze(1)
            logprobs, entropy = chunked_logprobs(
                hidden.flatten(0, 1)[trained],
                head.weight,
                head.bias,
                targets.flatten()[trained],
                temperature=temperature,
                chunk=self.head_chunk,
                head_dtype=self.head_dtype,
                compiled=self.compiled,
            )
        blank, mask = logprobs.new_zeros(ids.shape), loss_mask.bool()
        return blank.masked_scatter(mask, logprobs), blank.masked_scatter(mask, entropy)

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write a plain Hugging Face folder with the given full weights, and the tokenizer if the model had one."""
        self.model.save_pretrained(folder, state_dict=state)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def check_packing(self, mode: Mode) -> None:
        """Prove on the loaded weights that each sample of a row is computed as if alone; else raise `PolicyError`."""
        if mode == "bucketed":
            return
        window = getattr(self.model.config, "sliding_window", None)
        if mode == "shared" and window is not None:
            raise PolicyError(
                f"learner.packing: 'shared' does not work with {self._name()}, whose layers look at a window of "
                f"{window} tokens; use packing: bucketed"
            )
        if str(self.model.config._attn_implementation).startswith("flash_attention"):
            with self._on_gpu():
                self._check_packing(mode)
        else:
            self._check_packing(mode)

    @contextlib.contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """The model on this process's GPU, and back where it was."""
        if not torch.cuda.is_available():
            raise PolicyError("model.attention: 'flash_attention_2' needs a GPU, and torch sees none; use sdpa")
        before = next(self.model.parameters()).device
        self.cuda()
        try:
            yield
        finally:
            self.to(before)
            torch.cuda.empty_cache()

    def _check_packing(self, mode: Mode) -> None:
        ids = self._some_ids(12)
        prompt, first, second = ids.split([4, 5, 3], 1)
        samples = [_sample(torch.cat([prompt, completion], 1)[0].tolist(), prompt=4) for completion in (first, second)]
        (batch,) = pack(samples, TokenMean(), 100, mode)
        batch = batch.to(ids.device)
        with self._precision():
            together = self._hidden(batch.ids, batch.positions, batch.layout)[:, -3:]
            alone = self._hidden(torch.cat([prompt, second], 1), torch.arange(7, device=ids.device)[None])[:, 3:6]
        if not self._is_close(together, alone):
            raise PolicyError(
                f"learner.packing: {mode!r} does not work with {self._name()}: samples in one row are not computed as "
                f"if alone, with attention {self.model.config._attn_implementation!r} (or its layers carry a state "
                "along); use packing: bucketed, or attention: sdpa"
            )

    def _hidden(self, ids: Tensor, positions: Tensor, layout: SharedPrompts | None = None) -> Tensor:
        """Last hidden states [B L H], normalised, as the head reads them."""
        shared: dict[str, Any] = {}
        if layout is not None:
            # A mask with four axes is taken as it is: transformers would else make one from the positions
            shared = {"shared_prompts": layout, "attention_mask": ids.new_ones((1, 1, 1, 1), dtype=torch.bool)}
        output = self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False, **shared)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """The recipe's autocast, without its cache of cast weights: a forward pass uses each weight once, and under
        FSDP2 the cache would keep a 16-bit copy of the whole model on every rank until the pass ends."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.autocast, cache_enabled=False)

    @contextlib.contextmanager
    def _attention_of_any_device(self) -> Iterator[None]:
        """FlashAttention has kernels for GPUs and 16 bits alone, and a model is loaded on the CPU: sdpa stands in,
        where attention makes no difference to what is checked."""
        config = self.model.config
        chosen = config._attn_implementation
        if str(chosen).startswith("flash_attention"):
            config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = chosen

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse logits that are anything but hidden states times head plus bias: soft caps, scales, extra layers."""
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        if cap is not None:
            raise PolicyError(
                f"{self._name()} caps its logits softly (final_logit_softcapping: {cap}), which is not supported"
            )
        ids, head = self._some_ids(6), self.model.get_output_embeddings()
        with self._attention_of_any_device():
            theirs = self.model(input_ids=ids, use_cache=False).logits
            hidden = self._hidden(ids, torch.arange(6, device=ids.device)[None])
        ours = nn.functional.linear(hidden, head.weight, head.bias)
        if not self._is_close(ours, theirs):
            raise PolicyError(
                f"{self._name()} changes its logits after the linear head (a scale, a bias, another layer), by up to "
                f"{(ours - theirs).abs().max().item():.3g}: its log-probabilities would be wrong"
            )

    def _is_close(self, ours: Tensor, theirs: Tensor) -> bool:
        scale = theirs.abs().max().item()
        return (ours - theirs).abs().max().item() <= _TOLERANCE[theirs.dtype] * scale

    def _some_ids(self, count: int) -> Tensor:
        """[1 count] different token ids, spread over the vocabulary."""
        rows = _vocabulary(self.model)
        device = next(self.model.parameters()).device
        return (torch.arange(1, count + 1, device=device) * max(1, rows // (count + 1)) % rows)[None]

    def _name(self) -> str:
        return f"{type(self.model).__name__} ({self.model.config._name_or_path or 'unnamed'})"


def compile_layers(model: PreTrainedModel, *, kept: float) -> None:
    """Have torch compile each decoder layer; layers of one kind share what was compiled.

    Of a layer's activations, beyond its input, the part ``kept`` at most is kept for the backward pass. The compiler
    chooses which, where transformers' checkpointing computes whole layers again, their last product and attention with
    them. The setting is torch's, one for the process: the model that was loaded last decides for all.
    """
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise PolicyError(f"model.compile: {type(model).__name__} does not say what its layers are; set it to false")
    torch._dynamo.config.disable = False  # an engine's settings for its own process are seen here if it started first
    torch._functorch.config.activation_memory_budget = kept
    torch._functorch.config.is_non_builtin_to_include = True  # our attention is one of the things that may be kept
    for layer in layers:
        layer.compile(dynamic=True)


def _sample(ids: list[int], prompt: int) -> TrainingSample:
    mask = (0,) * prompt + (1,) * (len(ids) - prompt)
    return TrainingSample(ids=tuple(ids), loss_mask=mask, behaviour_logprobs=(0.0,) * len(ids), advantage=1.0, group=0)


def _vocabulary(model: PreTrainedModel) -> int:
    """Rows of the embedding, which may be more than the tokenizer's tokens."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _switch_off_dropout(settings: object) -> None:
    """Policy and behaviour must be one distribution, so that no layer may drop anything at random."""
    for name, value in vars(settings).items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float) and value > 0.0:
            log.warning(
                "model: %s %s is switched off: the policy must be the distribution that is sampled", name, value
            )
            setattr(settings, name, 0.0)


def _has_tokenizer(path: str) -> bool:
    """False for a local folder that holds none; the hub is asked."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return not Path(path).exists() or any((Path(path) / name).exists() for name in names)
