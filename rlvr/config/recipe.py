"""The whole recipe: sections `model`, `learner` and `run`, and the rules between sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlvr.config.algorithm import Algorithm
from rlvr.config.base import Fraction01, ImportPath, NonNegativeFloat, NonNegativeInt, Section
from rlvr.config.groups import CosineLength, RepetitionStopped, SoftOverlong, check_sizes
from rlvr.config.problems import Problems, Template
from rlvr.config.rollout import Rewards, Rollout
from rlvr.config.schedule import Schedule
from rlvr.config.select import Select

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Lora(Section):
    """Low-rank adapters by peft, instead of training the weights themselves; without dropout, because the policy must
    be the distribution that is sampled.

    Engine and checkpoints get merged weights, checkpoints the adapters too. Adapters alone would be less to send, but
    in vLLM they are a second path: named by each request, read from a folder, in products of their own that round
    otherwise, and outside the transfer that stamps the weight version on each token and that the start's proof tests.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The product of the adapters is multiplied by alpha / rank."""
    targets: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Names of linear layers, such as q_proj; all but the head."""
    seed: int = 0
    """Of the adapters' random half; the other starts at zero."""


class Model(Section):
    """The policy to start from."""

    path: str
    """A local Hugging Face folder or a name on the hub."""
    prepare: ImportPath | None = None
    """A function that makes the folder when it does not exist yet: called with the recipe. An override of `path` alone
    unsets it, since it makes the model that the recipe's file names."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights and so of the optimiser's state."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Type of matrix products over `dtype` weights."""
    head_dtype: Literal["same", "float32"] = "same"
    """Type of the head's matrix products: that of the others, or float32 over the same weights (ScaleRL, MiniMax-M1),
    which takes most of the rounding out of log-probabilities. vLLM on a GPU is told to do the same; on a CPU its packed
    head stays in the engine's dtype, and so does that of the engine `hf`."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time. On a CPU the memory is well
    spent on larger micro-batches, whose matrix products run so much faster that the update takes less time in all."""
    compile: bool = False
    """Compile each layer, and the softmax after the head, by torch.compile: norms, activations, rotary embeddings and
    blocks of logits pass through memory once or twice. The first step takes up to a minute longer; on a CPU a C++
    compiler must be installed. With ``gradient_checkpointing`` the compiler chooses what is computed again, within
    `kept_activations`, and a layer's last product is never repeated."""
    kept_activations: Fraction01 = 0.1
    """With ``compile`` and ``gradient_checkpointing``: the part of a layer's activations, beyond its input, that is
    kept instead of computed again (torch's activation_memory_budget). 0.1 is about attention's output, which costs the
    most for its size; 0.5 keeps the wide products of the MLP as well."""

    @field_validator("autocast", mode="before")
    @classmethod
    def _no_float16(cls, value: object) -> object:
        if value == "float16":
            raise ValueError("must be none or bfloat16, got 'float16': gradients would need loss scaling; use bfloat16")
        return value


class LRSchedule(Section):
    """Learning rate over the optimiser steps: linear warm-up, then the named curve down to `final` times the peak."""

    type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final: Fraction01 = 0.0
    """Share of the peak at the last step (linear and cosine)."""


class LearnerConfig(Section):
    """How the policy is updated; supervised fine-tuning uses the same section."""

    lr: PositiveFloat
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """``adamw_8bit`` keeps the moments of tensors of 4096 numbers and more in blocks of 8 bits (bitsandbytes; Dettmers
    et al. 2022, arXiv 2110.02861): 2 bytes a weight, where ``adamw`` keeps two numbers of the weight's type. For one
    process or DDP. On a CPU a step of it takes about 20 times as long, 3 s for 100 M parameters."""
    schedule: LRSchedule = LRSchedule()
    betas: Annotated[tuple[Decay, Decay], Field(description="AdamW's moments")] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    micro_batch_tokens: PositiveInt = 8192
    """Most positions, padding included, that one forward and backward pass computes."""
    packing: Literal["shared", "bucketed", "packed"] = "shared"
    """``shared``: completions one after another in one row, the prompt of a group once; ``packed``: the same with each
    prompt, kept apart by their positions; ``bucketed``: one completion a row, rows of like length together. The
    backward pass of shared prompts' attention is made of plain matrix products, the quickest on a CPU; on a GPU, where
    torch's own is quick, ``bucketed`` is the safe choice for long prompts and completions."""
    head_chunk: PositiveInt = 256
    """Tokens whose logits exist at the same time, in float32: 256 of a vocabulary of 150,000 take 0.15 GB, and the
    passes up to three times as much."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run, or its update is left out and counted."""


class Sft(Section):
    """Settings of ``rlvr sft``: rows of prompt and completion."""

    path: str
    """JSON lines."""
    prompt: str = "prompt"
    completion: str = "completion"
    steps: PositiveInt
    batch_size: PositiveInt = 32
    """Rows an optimiser step."""


class Dpo(Section):
    """Settings of ``rlvr dpo``: rows of prompt, chosen and rejected completion; the reference is the starting
    policy."""

    path: str
    """JSON lines; prompts are text or chat messages, completions text or a list of one assistant message."""
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    beta: PositiveFloat = 0.1
    """How much a log ratio to the reference counts as reward: a larger one keeps the policy nearer."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Chance that a label is the wrong way round."""
    steps: PositiveInt
    batch_size: PositiveInt = 32
    """Pairs an optimiser step."""


class KeepBest(Section):
    """Which checkpoint is the best."""

    metric: str
    """A metric of the checkpoint's own step, such as eval/NAME/pass@1: save where it is measured."""
    mode: Literal["max", "min"] = "max"


RuleName = Literal[
    "non_finite", "stale_engine", "engine_mismatch", "verifier_timeouts", "verifier_crashes", "unscored",
    "learning_rate_too_large", "policy_not_moving", "length_exploding", "all_truncated", "no_answer", "dead_term",
    "entropy_gone", "always_right", "all_wrong", "constant_reward", "no_variance", "reward_without_eval",
    "reward_collapsed", "gradient_zero", "learning_rate_too_small", "mismatch_growing", "clip_share",
    "entropy_exploding", "gradient_exploding", "length_collapsing", "often_truncated", "judge_disagrees",
    "no_progress", "too_good_too_soon", "solved",
]  # fmt: skip
"""The rules that watch a running loop, `rlvr.rules.rules`."""


class RunConfig(Section):
    """The run itself: how long, where to, what is written."""

    steps: PositiveInt
    output: str = "runs"
    """The run's folder is OUTPUT/NAME."""
    seed: int = 0
    eval_every: PositiveInt | None = None
    """Steps between evaluations; one more is done before the first and after the last step. None: only those two."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; the last step always saves one."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_best: KeepBest | None = None
    """The checkpoint kept because no other has a better value of a metric; ``checkpoints/best`` points to it."""
    keep_every: PositiveInt | None = None
    """Checkpoints of every so many-th step are kept for good."""
    background_save: bool = True
    """Write a checkpoint in a thread beside the next steps, from a copy in memory."""
    resume: str = "auto"
    """``auto`` goes on from the run's last checkpoint if it has one; ``must`` asks for one; ``never`` refuses a folder
    that holds a run; the path of a checkpoint or of another run's folder starts from there."""
    force: bool = False
    """Train even where the doctor's cheap rules say that this recipe cannot learn (docs/doctor.md)."""
    on_damaged: Literal["previous", "stop"] = "previous"
    """What a damaged checkpoint does: it is set aside and the one before it used, or the run stops."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    """metrics.jsonl is always written."""
    project: str = "rlvr"
    """The trackers' project name."""
    log_rollouts: bool = True
    """Write every rollout to rollouts.jsonl, and those of evaluations to evaluations/NAME/rollouts.jsonl."""
    log_token_groups: NonNegativeInt = 2
    """Of how many groups a step rollouts.jsonl holds the tokens too, with the log-probabilities of engine and learner:
    about 25 bytes a token. Groups that are trained go first."""
    on_disk_full: Literal["stop", "warn"] = "stop"
    """What a log line or a checkpoint that cannot be written does: end the run after a clear message, or go on without
    it."""
    stop_on: list[RuleName] = []
    """Rules of docs/doctor.md that end the run, with a checkpoint and status 3, when they fire on it; all others warn
    the first time."""
    process_timeout: PositiveInt = 7200
    """Seconds that the other processes wait for the first, which samples and decides, before the run ends. A collective
    on GPUs, in which nobody waits for that, may take 10 minutes."""
    threads: PositiveInt | None = None
    """Cores that torch uses on a CPU; None takes all that the process may use."""
    peak_tflops: PositiveFloat | None = None
    """10^12 operations a second of one device in matrix products, what the metrics `mfu/...` compare with; None takes
    the maker's figure for a known GPU, else measures it at the start."""


def check_off_policy(schedule: Schedule, algorithm: Algorithm) -> None:
    """Raise `ValueError` where tokens of older weights would be trained as if the policy had just sampled them."""
    corrects = algorithm.correction.type != "none" or algorithm.ratio.against == "behaviour"
    if schedule.bound > 0 and not corrects and algorithm.surrogate.type != "squared":
        raise ValueError(
            f"rollout.schedule {schedule.type!r} trains on tokens up to {schedule.bound} versions old, and with "
            "algorithm.correction: none and ratio.against: recomputed nothing weighs them; set correction: {type: "
            "truncate} (or mask), or ratio: {against: behaviour}"
        )


class Recipe(Section):
    """One training run, complete."""

    schema_version: Literal[1] = Field(alias="schema")
    """Version of the recipe's format."""
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    run: RunConfig
    model: Model
    template: Template
    problems: Problems
    rewards: Rewards
    rollout: Rollout
    algorithm: Algorithm
    learner: LearnerConfig
    sft: Sft | None = None
    dpo: Dpo | None = None
    select: Select = Select()

    @model_validator(mode="after")
    def _across(self) -> Recipe:
        names = [term.name for term in self.rewards.terms]
        names += [term.name for eval_set in self.problems.eval for term in eval_set.terms or ()]
        if len(set(names)) != len(names):
            raise ValueError(f"terms of rewards and of eval sets need different names, got {names}")
        sets = [eval_set.name for eval_set in self.problems.eval]
        if (best := self.run.keep_best) is not None and best.metric.startswith("eval/"):
            measured = best.metric.removeprefix("eval/").rpartition("/")[0]
            if measured not in sets:
                raise ValueError(
                    f"run.keep_best.metric must name an eval set, eval/NAME/..., got {best.metric!r}; problems.eval "
                    f"has {', '.join(sets) or 'none'}"
                )
        algorithm, rollout = self.algorithm, self.rollout
        check_sizes(algorithm.filter, algorithm.baseline, algorithm.scale, rollout.prompts_per_step, rollout.group_size)
        updates = self.algorithm.updates_per_batch
        if self.rollout.prompts_per_step % updates:
            raise ValueError(
                f"algorithm.updates_per_batch must divide rollout.prompts_per_step = {self.rollout.prompts_per_step}, "
                f"got {updates}: each update gets an equal share of the groups"
            )
        for shaping in self.algorithm.shaping:
            if isinstance(shaping, SoftOverlong) and shaping.max_tokens > self.rollout.max_new_tokens:
                raise ValueError(
                    f"soft_overlong.max_tokens must be at most rollout.max_new_tokens = {self.rollout.max_new_tokens}, "
                    "or the punishment never applies"
                )
            if isinstance(shaping, RepetitionStopped) and rollout.repetition is None:
                raise ValueError(
                    "rollout.repetition must be set with shaping 'repetition_stop', got null: no completion would end "
                    "for that reason; use rollout.repetition: {count: 16}, or shaping 'repetition'"
                )
            longest = shaping.max_tokens if isinstance(shaping, CosineLength) and shaping.exceeded is not None else 0
            if isinstance(shaping, CosineLength) and longest > rollout.max_new_tokens:
                raise ValueError(
                    f"cosine_length.max_tokens must be at most rollout.max_new_tokens = {rollout.max_new_tokens}, got "
                    f"{shaping.max_tokens}: no completion could get `exceeded`"
                )
        if (filters := rollout.filters()) and (weighs := algorithm.weighs_behaviour()) is not None:
            name, value = next(iter(filters.items()))
            raise ValueError(
                f"rollout.{name} must be {1 if name == 'top_p' else 0} with algorithm.{weighs[0]}: {weighs[1]}, got "
                f"{value:g}: it leaves tokens out and scales up the others, so that the engine's probabilities lie "
                "above the learner's by 1 / the mass that was kept, and a ratio of the two would be biased by it; or "
                "use ratio: {against: recomputed} and correction: {type: none}, which look at the learner's alone"
            )
        check_off_policy(rollout.schedule, algorithm)
        if rollout.engine.type == "vllm" and rollout.engine.sleep and rollout.schedule.overlaps:
            raise ValueError(
                f"rollout.engine.sleep must be false with rollout.schedule {rollout.schedule.type!r}, got true: its "
                "engine samples while the learner computes; use synchronous or partial"
            )
        kl = algorithm.kl
        if self.model.lora is not None and kl.type != "none" and kl.reference.type == "average":
            raise ValueError(
                "algorithm.kl.reference must be fixed or copy with model.lora, got 'average': the average of adapters "
                "is not the average of the weights they make"
            )
        return self
