"""Translates requests to vLLM's parameters and vLLM's output to completions, in process or behind a URL."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rlvr.config.speculative import ModelDrafts, NgramDrafts, SuffixDrafts
from rlvr.dtypes import DtypeName
from rlvr.engines.devices import SHARED_SHARE
from rlvr.engines.protocol import EngineError
from rlvr.engines.stop_strings import Decoder, completion_text
from rlvr.records import Completion, FinishReason, Request

FILE_BACKEND = "rlvr_file"
CUDA_BACKEND = "rlvr_ipc"
NCCL_BACKEND = "nccl"
CPU_KERNELS = "rlvr_cpu"
WORKER_EXTENSION = "rlvr.engines.vllm.worker.WorkerExtension"
INLINE_EXECUTOR = "rlvr.engines.vllm.worker.InlineExecutor"
PARENT_VARIABLE = "RLVR_PARENT_PID"
GPU_BATCH_TOKENS = 8192
"""Most tokens of one step of the model on a GPU, prompts in chunks included; vLLM's own default for this way of calling
it is 2,048."""
_FINISH_REASONS = ("stop", "length", "abort", "repetition")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Settings of one vLLM engine, in process or in a server."""

    model: str
    """A Hugging Face folder."""
    dtype: DtypeName = "bfloat16"
    max_model_len: int | None = None
    """Most tokens, prompt and completion together; None is the model's own."""
    max_num_seqs: int = 128
    kv_cache_gib: float = 2.0
    """Keys and values on a CPU."""
    gpu_memory_share: float | None = None
    """None is what a learner leaves on the same GPU."""
    device_ids: tuple[int, ...] | None = None
    """GPUs, numbered among those that CUDA_VISIBLE_DEVICES shows; None is the process's own."""
    enforce_eager: bool = True
    threads: int | None = None
    """Cores of a CPU engine; None takes all."""
    tensor_parallel: int = 1
    sleep: bool = False
    """Able to give its GPU memory up for a while."""
    speculative: Mapping[str, Any] | None = None
    """vLLM's speculative_config, as `speculative_config` makes it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs; they win."""

    def arguments(self, *, on_cpu: bool, gpu_transfer: str) -> dict[str, Any]:
        """vLLM's AsyncEngineArgs; `gpu_transfer` is how weights reach an engine on a GPU."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "tokenizer": self.model,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "enforce_eager": self.enforce_eager,
            "tensor_parallel_size": self.tensor_parallel,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "enable_prefix_caching": True,
            "enable_sleep_mode": self.sleep,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
            "worker_extension_cls": WORKER_EXTENSION,
        }
        if on_cpu:
            arguments["enable_chunked_prefill"] = False  # a seeded request would lose its place in its noise
            arguments["kv_cache_memory_bytes"] = int(self.kv_cache_gib * 2**30)
            arguments["weight_transfer_config"] = {"backend": FILE_BACKEND}
            if self.enforce_eager:  # a compiler would fuse the plain operators better
                arguments["ir_op_priority"] = {"rms_norm": [CPU_KERNELS], "fused_add_rms_norm": [CPU_KERNELS]}
            if self.tensor_parallel == 1:
                arguments["distributed_executor_backend"] = INLINE_EXECUTOR
        else:
            # there noise is a hash of seed, position and token, so that a prompt may come in chunks
            arguments["max_num_batched_tokens"] = max(GPU_BATCH_TOKENS, self.max_num_seqs)
            arguments["gpu_memory_utilization"] = self.gpu_memory_share or SHARED_SHARE
            arguments["device_ids"] = None if self.device_ids is None else ",".join(map(str, self.device_ids))
            arguments["weight_transfer_config"] = {"backend": gpu_transfer}
        if self.speculative is not None:
            arguments["speculative_config"] = dict(self.speculative)
        return arguments | dict(self.extra)

    def environment(self, parent: int) -> dict[str, str]:
        """Variables of the engine's processes, which end with the process `parent`."""
        eager = {"TORCHDYNAMO_DISABLE": "1"} if self.enforce_eager else {}  # compiles a helper even so
        return eager | {
            "OMP_NUM_THREADS": str(self.threads or len(os.sched_getaffinity(0))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            PARENT_VARIABLE: str(parent),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_COLOR": "0",
            "TQDM_DISABLE": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }


def speculative_config(drafts: NgramDrafts | SuffixDrafts | ModelDrafts) -> dict[str, Any]:
    """vLLM's speculative_config for the recipe's ``rollout.engine.speculative``."""
    common: dict[str, Any] = {"method": drafts.type, "num_speculative_tokens": drafts.tokens}
    if isinstance(drafts, NgramDrafts):
        return common | {"prompt_lookup_min": drafts.shortest, "prompt_lookup_max": drafts.longest}
    return common | ({"model": drafts.path} if isinstance(drafts, ModelDrafts) else {})


def sampling_parameters(request: Request) -> dict[str, Any]:
    """vLLM's SamplingParams for a request, but for what belongs to the way it travels."""
    sampling = request.sampling
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": request.seed,
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # the tokenizer's end-of-text ends a completion only if it is in stop_token_ids
        "include_stop_str_in_output": True,
        "logprobs": 0,
        "detokenize": bool(sampling.stop),
        "repetition_detection": None
        if sampling.repetition is None
        else {
            "max_pattern_size": sampling.repetition.longest,
            "min_pattern_size": sampling.repetition.shortest,
            "min_count": sampling.repetition.count,
        },
    }


def prompt_logprobs_parameters(last: int) -> dict[str, Any]:
    """vLLM's SamplingParams for the log-probabilities of a prompt and of `last`, candidate for the token after it."""
    return {
        "max_tokens": 1,
        "temperature": 1.0,
        "seed": 0,
        "prompt_logprobs": 0,
        "logprob_token_ids": [last],
        "ignore_eos": True,
        "detokenize": False,
    }


@dataclass(frozen=True, slots=True)
class VllmOutput:
    """What vLLM returned for one request; `versions` are (version, first token, end) of each span."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: Sequence[tuple[str, int, int]]
    finish_reason: str
    is_stop_string: bool


def build_completion(
    request: Request, output: VllmOutput, tokenizer: Decoder, version_of: Callable[[str], int] = int
) -> Completion:
    """The checked completion; `version_of` reads a version as the engine reports it. Raises `EngineError`."""
    ids, logprobs = output.ids, output.logprobs
    versions = tuple(version_of(version) for version, start, end in output.versions for _ in range(start, end))
    if not len(ids) == len(logprobs) == len(versions):
        raise EngineError(
            f"request {request.id!r}: vLLM returned {len(ids)} ids, {len(logprobs)} log-probabilities and "
            f"versions of {len(versions)} tokens"
        )
    if not all(map(math.isfinite, logprobs)):
        raise EngineError(
            f"request {request.id!r}: a log-probability is not finite; the weights of version {versions[-1]} "
            "make the model's output inf or nan"
        )
    if output.finish_reason not in _FINISH_REASONS:
        raise EngineError(f"request {request.id!r}: vLLM ended it with {output.finish_reason!r}")
    return Completion(
        ids=ids,
        behaviour_logprobs=logprobs,
        weight_version=versions,
        text=completion_text(tokenizer, ids, request.sampling.stop if output.is_stop_string else ()),
        finish_reason=cast(FinishReason, output.finish_reason),
    )
