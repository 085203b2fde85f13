"""Recipe sections ``rewards`` and ``rollout``: who grades completions, and how they are sampled."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from rlvr.config.base import Fraction01, ImportPath, NonNegativeInt, Section
from rlvr.config.problems import RewardTerm
from rlvr.config.schedule import Schedule, Synchronous
from rlvr.config.speculative import Speculative


class Rewards(Section):
    """How completions are graded, in killable processes beside the run."""

    terms: Annotated[list[RewardTerm], Field(min_length=1)]
    workers: PositiveInt = 1
    """Processes that grade at the same time."""
    timeout: PositiveFloat = 2.0
    """Seconds that one grading may take before its process is killed."""
    memory_mb: PositiveInt = 2048
    """Memory that one grading process may hold, in MiB."""
    max_unscored: Fraction01 = 0.1
    """The run stops when more than this share of a step's rollouts could not be scored (verifier raised)."""

    @model_validator(mode="after")
    def _gates(self) -> Rewards:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"reward terms need different names, got {names}")
        for term in self.terms:
            if term.gate is not None and (term.gate == term.name or term.gate not in names):
                raise ValueError(f"gate of term {term.name!r} must name another term of {names}, got {term.gate!r}")
        return self


def _different(devices: list[int]) -> list[int]:
    if len(set(devices)) < len(devices):
        raise ValueError(f"devices must differ, got {devices}; one engine takes a device")
    return devices


DeviceList = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_different)]


class _Vllm(Section):
    """Settings of every vLLM engine."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_num_seqs: PositiveInt = 128
    """Requests that run at the same time."""
    kv_cache_gib: PositiveFloat = 2.0
    """Memory for keys and values on a CPU, in GiB."""
    gpu_memory_share: Fraction01 | None = None
    """Share of each GPU's memory that vLLM may take; None is 0.4 beside a learner, 0.9 on a device of its own.
    Unused on a CPU."""
    enforce_eager: bool | None = None
    """True starts sooner; False compiles, and records CUDA graphs on a GPU, where small models sample several times as
    fast. None is False on a GPU and True on a CPU."""
    threads: PositiveInt | None = None
    """Cores that vLLM uses on a CPU; None takes all."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    speculative: Speculative | None = None
    """Tokens are proposed, and the policy checks several at once; None is off. Measure first whether it is faster, by
    type ``vllm`` with ``stats: true`` with and without it: large batches leave nothing to win. Not on a CPU."""
    extra: dict[str, Any] = {}
    """Further arguments of vLLM's AsyncEngineArgs."""


class VllmEngineConfig(_Vllm):
    """vLLM beside the learner on the same device (GPU) or the same cores (CPU)."""

    type: Literal["vllm"]
    devices: Literal["first", "each"] | DeviceList = "first"
    """Where engines run: ``first`` is one beside rank 0, ``each`` one beside each rank of this node, a list such as
    ``[6, 7]`` one on each of these GPUs. More than one share the requests; each is a server of the run's own."""
    sleep: bool = False
    """While the learner computes, the engine gives up the memory of its weights, keys and values, and gets it back with
    the next weights: room for larger micro-batches, for some seconds a step. Not with a schedule that overlaps, nor on
    a CPU."""
    restarts: NonNegativeInt = 3
    """How often an engine that died is started again, its requests with it, before the run stops."""
    timeout: PositiveFloat = 1800.0
    """Seconds without the end of any request after which the engine is taken to hang, and is started again."""
    stats: bool = False
    """Measure tokens a second by how many requests run, the metrics ``engine/...``; always on with `speculative`."""


class VllmServersConfig(_Vllm):
    """One or more `vllm serve` servers on any hosts, each started by ``rlvr serve RECIPE`` or by the run."""

    type: Literal["vllm_servers"]
    urls: list[Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")]] = []
    """Servers that are started elsewhere, such as ``http://10.0.0.7:8000``: with the same `dtype` and model."""
    devices: Literal["first", "each"] | DeviceList | None = None
    """Servers that the run itself starts on this host, placed as with type ``vllm``; they end with it. None is none."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and completion; None takes the longest prompt and completion of the recipe's problems."""
    transfer: Literal["file", "nccl"] = "file"
    """How weights reach a server: a file that it reads, or vLLM's NCCL broadcast between GPUs."""
    folder: str | None = None
    """Where the file of weights lies, seen under the same path by the run and by all servers; None is the memory of
    this host, for servers on it under the same user."""
    address: str | None = None
    """Where servers reach this host for NCCL; None is its address on the way to them."""
    timeout: PositiveFloat = 120.0
    """Seconds without a response after which a server is taken to hang, and its requests go elsewhere. A step of its
    model and the loading of weights must take less."""
    wait: PositiveFloat = 600.0
    """Seconds that the run waits for a server: for each at the start, for any when none is there."""
    restarts: NonNegativeInt = 3
    """How often one request is made again, and a server of the run's own is started again, before the run stops."""

    @model_validator(mode="after")
    def _has_servers(self) -> VllmServersConfig:
        if not self.urls and self.devices is None:
            raise ValueError(
                "urls and devices are both empty; name servers in urls, or let the run start some on devices"
            )
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"urls must differ, got {self.urls}")
        for key, other in (("folder", "nccl"), ("address", "file")):
            if getattr(self, key) is not None and self.transfer == other:
                raise ValueError(f"{key} has no meaning with transfer: {other}; leave it out")
        return self


class HfEngineConfig(Section):
    """transformers' own forward pass: slow, obvious, the oracle of the tests."""

    type: Literal["hf"]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch: PositiveInt = 128
    """Sequences that are generated together."""


class RepetitionStopConfig(Section):
    """End a completion, with its own finish reason, once its last tokens repeat one pattern."""

    shortest: PositiveInt = 1
    """Tokens of the shortest pattern that is looked for."""
    longest: PositiveInt = 64
    """Tokens of the longest one; looking costs up to so many comparisons a token."""
    count: Annotated[int, Field(ge=2)] = 16
    """Copies in a row that end the completion."""

    @model_validator(mode="after")
    def _range(self) -> RepetitionStopConfig:
        if self.shortest > self.longest:
            raise ValueError(f"shortest must be at most longest = {self.longest}, got {self.shortest}")
        return self


class Rollout(Section):
    """How completions are sampled."""

    engine: Annotated[VllmEngineConfig | VllmServersConfig | HfEngineConfig, Field(discriminator="type")]
    prompts_per_step: PositiveInt
    """Problems a step, P."""
    group_size: PositiveInt
    """Completions to each problem, G."""
    max_new_tokens: PositiveInt
    temperature: PositiveFloat = 1.0
    """Engine and learner divide logits by it; an evaluation may be greedy, training never."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the likeliest tokens that hold this much probability. This and the next two leave tokens out and
    scale up the others, which an objective that weighs the learner's probabilities against the engine's cannot have."""
    top_k: NonNegativeInt = 0
    """Sample from so many tokens, the likeliest; 0 is all."""
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Sample from the tokens whose probability is at least this share of the likeliest one's."""
    schedule: Schedule = Synchronous()
    """When the engine samples and when the learner trains."""
    stall_timeout: PositiveFloat = 3600.0
    """Seconds without the end of any completion or grading after which the run stops, naming what it waits for; each
    tenth of it is told."""
    repetition: RepetitionStopConfig | None = None
    """End completions that repeat themselves (Kimi k1.5), in training, not in evaluations; None lets them run on. A
    penalty is `algorithm.shaping: [{type: repetition_stop}]`."""
    workflow: ImportPath | None = None
    """What happens between prompt and verdict; None is G completions to one prompt."""
    self_test: bool = True
    """Prove at the start that the engine follows each group of parameters."""
    probe: PositiveInt = 4
    """Sequences whose log-probabilities are compared between engine and learner at each sync."""

    def filters(self) -> dict[str, float]:
        """The settings that remove tokens from the sampling distribution."""
        values: dict[str, tuple[float, float]] = {
            "top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0), "min_p": (self.min_p, 0.0)
        }  # fmt: skip
        return {name: value for name, (value, off) in values.items() if value != off}

    @model_validator(mode="after")
    def _can_vary(self) -> Rollout:
        if self.top_k == 1:
            raise ValueError(
                "top_k must be 0 (all tokens) or at least 2, got 1: every completion of a group would be the greedy "
                "one, and nothing could be learned from comparing them"
            )
        return self

    @model_validator(mode="after")
    def _drafts(self) -> Rollout:
        speculative = None if isinstance(self.engine, HfEngineConfig) else self.engine.speculative
        if speculative is not None and self.min_p > 0:
            raise ValueError(
                f"min_p must be 0 with engine.speculative {speculative.type!r}, got {self.min_p:g}: vLLM does not "
                "apply it to proposed tokens and refuses such requests; use top_p, or engine.speculative: null"
            )
        return self

    @model_validator(mode="after")
    def _can_end(self) -> Rollout:
        stop = self.repetition
        if stop is not None and stop.shortest * stop.count > self.max_new_tokens:
            raise ValueError(
                f"repetition.count must be at most max_new_tokens / shortest = {self.max_new_tokens // stop.shortest}, "
                f"got {stop.count}: no completion could repeat itself so often"
            )
        return self
