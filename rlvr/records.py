"""The data that travels between the stages of a training step, one frozen record per stage boundary.

    Problem -> (prompt tokens) -> Completion -> Rollout -> RolloutGroup -> TrainingSample -> MicroBatch

Legend of the shapes: ``_P`` problems of a step, ``_G`` completions of one group, ``T`` tokens of one sequence,
``B L`` rows and columns of a micro-batch. Everything up to `TrainingSample` is plain Python; only `MicroBatch` holds
tensors. Tokens in, tokens out: ids, their log-probabilities under the policy that sampled them and the version of its
weights are parallel tuples that never part; text is for graders and people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewards import Outcome, Verdict

SCHEMA_VERSION = 1

FinishReason = Literal["stop", "length", "abort", "repetition"]
"""Why sampling ended: a stop token or string, the token limit, an interruption, a detected repetition."""

Message = Mapping[str, str]
"""A chat message: ``{"role": "user", "content": "..."}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One task of a data set, before any template has seen it.

    Example: ``Problem(id="mul/3x7", prompt="What is 3*7?", reference="21", key="arithmetic:3*7")``.
    """

    id: str
    """Unique within its set and stable from run to run."""
    prompt: str | tuple[Message, ...]
    """The question as text, or as chat messages."""
    reference: Any
    """What the verifiers grade against; JSON-able."""
    key: str
    """Canonical form: two problems with one key are the same problem (3*7 and 7*3)."""
    source: str = ""
    """Where it stands, for error messages: ``gsm8k.jsonl:17``."""
    verifiers: tuple[str, ...] | None = None
    """The reward terms that apply to this problem; None means all of the recipe's."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else the data row held: difficulty, topic, extra columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionStop:
    """When sampling ends because the completion repeats itself: its last tokens are `count` copies of one pattern.

    A continued completion is looked at from where it was continued.
    """

    shortest: int
    """Tokens of the shortest pattern that counts."""
    longest: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters, the same for all requests of a phase.

    The engine returns log-probabilities of the distribution that it samples from, after `temperature`; with
    `top_p`, `top_k` or `min_p` at work these lie above the policy's own by the log of the mass that was kept, and a
    recipe that would compare the two is refused.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the tokens that complete one are kept."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion; the token itself is kept and trained."""
    repetition: RepetitionStop | None = None
    """None lets a completion repeat itself up to the token limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sampling job for an engine."""

    id: str
    prompt_ids: tuple[int, ...]
    """Everything the model reads before its first new token; a continued completion has its earlier tokens here."""
    sampling: Sampling
    seed: int
    """Decides the draw; see `request_seed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine sampled for one `Request`: four parallel tuples of length T, and why it ended.

    Example: ``Completion(ids=(13, 2), behaviour_logprobs=(-0.7, -0.1), weight_version=(4, 4), text="21",
    finish_reason="stop")``.
    """

    ids: tuple[int, ...]
    """[T] sampled tokens, the stop token included."""
    behaviour_logprobs: tuple[float, ...]
    """[T] log-probability of each token under the distribution it was drawn from, in nats."""
    weight_version: tuple[int, ...]
    """[T] version of the weights that sampled each token, as the engine reports it."""
    text: str
    """The decoded tokens without special tokens, cut at a stop string's end."""
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        lengths = (len(self.ids), len(self.behaviour_logprobs), len(self.weight_version))
        if len(set(lengths)) != 1:
            raise ValueError(f"ids, behaviour_logprobs and weight_version must have one length, got {lengths}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One graded completion to one problem.

    After the prompt come ``T`` tokens, sampled by the policy or put there by a workflow; what the policy did not
    sample has loss mask 0.
    """

    problem_id: str
    visit: int
    """How many times this problem had been drawn before."""
    sample_index: int
    """Place in the group, 0 .. G-1; -1 for the greedy completion beside it."""
    request_seed: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """[T]"""
    loss_mask: tuple[int, ...]
    """[T] 1 where the policy sampled the token, 0 elsewhere."""
    behaviour_logprobs: tuple[float, ...]
    """[T]; 0.0 where the loss mask is 0."""
    weight_version: tuple[int, ...]
    """[T]"""
    text: str
    """What graders read: the template's prefill and the decoded completion."""
    finish_reason: FinishReason
    verdicts: Mapping[str, Verdict]
    """By reward term."""
    reward: float | None
    """Weighted sum of the verdicts; None if the rollout was not scored, which is not 0."""
    grade_seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.loss_mask), len(self.behaviour_logprobs), len(self.weight_version)}
        if len(lengths) != 1:
            raise ValueError(
                f"rollout {self.problem_id}/{self.visit}/{self.sample_index}: ids, loss_mask, behaviour_logprobs and "
                f"weight_version must have one length, got {sorted(lengths)}"
            )

    @property
    def is_truncated(self) -> bool:
        """True where the token limit, not the model, ended the completion."""
        return self.finish_reason == "length"

    @property
    def is_correct(self) -> bool | None:
        """Whether the first reward term that applied gave full marks; None if it did not judge.

        The order of the recipe's terms decides: the term that says whether an answer is right stands first.
        """
        verdict = next(iter(self.verdicts.values()), None)
        if verdict is None or not verdict.outcome.is_scored:
            return None
        return verdict.outcome is Outcome.CORRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The G completions to one visit of one problem; groups are identified by id, never by the prompt's text."""

    problem: Problem
    visit: int
    rollouts: tuple[Rollout, ...]
    greedy: Rollout | None = None
    """The completion at temperature 0, where the baseline asks for it; graded, never trained, no member of the
    group."""

    @property
    def rewards_G(self) -> list[float | None]:
        """One reward a rollout, None where it was not scored."""
        return [rollout.reward for rollout in self.rollouts]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One sequence for the learner: prompt and completion in one row of ids, with what the objective needs per
    token."""

    ids: tuple[int, ...]
    """[T] prompt and completion."""
    loss_mask: tuple[int, ...]
    """[T] 1 on tokens that are trained; the first token is never trained (nothing predicts it)."""
    behaviour_logprobs: tuple[float, ...]
    """[T]; 0.0 where the loss mask is 0."""
    advantage: float
    """What multiplies this sample's tokens."""
    group: int
    """Index of its group within the step: `aggregation: prompt_mean` needs it."""

    def __post_init__(self) -> None:
        if len({len(self.ids), len(self.loss_mask), len(self.behaviour_logprobs)}) != 1:
            raise ValueError("ids, loss_mask and behaviour_logprobs of a training sample must have one length")
        if self.loss_mask and self.loss_mask[0]:
            raise ValueError("the first token of a sample has no prediction and cannot be trained")

    @property
    def trained_tokens(self) -> int:
        """Number of tokens with loss mask 1."""
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Maps between a compact row, in which each prompt stands once, and whole samples; see `rlvr.learn.shared_prompts`.

    N compact positions represent samples of at most L positions.
    """

    rows: Int[Tensor, "R L"]
    """``rows[r, t]``: index (0 .. N-1) in the compact row of the token that row r reads at t. One row per sample, then
    one per shared prompt; padding is 0."""
    owners: Int[Tensor, " N"]
    """``owners[n]``: index in the flattened rows of position n; a shared position belongs to its prompt's row."""
    blocks: Int[Tensor, "_ 5"]
    """One block per group: (first row, end row, first position, shared, length). Its rows have at most ``length``
    positions and all begin with the ``shared`` positions from ``first position`` on; prompt rows share none. Always on
    the CPU."""

    def to(self, device: torch.device | str) -> SharedPrompts:
        """The same on `device`."""
        return SharedPrompts(self.rows.to(device), self.owners.to(device), self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatistics:
    """Statistics over all tokens of an optimiser step, on all ranks, so that micro-batches cannot change
    it; under the policy before the first update on the batch (`rlvr.learn.losses.statistics`)."""

    positive_tokens: float
    """Trained tokens with a positive advantage."""
    entropy_threshold: float = 0.0
    """The least entropy of the tokens that ``top_entropy`` keeps."""
    mean_logprob: float = 0.0
    mean_advantage: float = 0.0
    covariance_threshold: float = 0.0
    """The least covariance of the tokens that ``kl_cov`` penalises."""
    draw: int = 0
    """What decides the random choice of ``clip_cov``: the number of the update."""
    draw_threshold: int = -1
    """The greatest draw among the tokens that ``clip_cov`` leaves out; -1 if there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The input of one forward and backward pass: rows of samples, padded on the right or packed one after another,
    or all in one row with their common prompts once.

    Column ``t`` predicts ``targets[:, t]``; ids, targets and every per-token tensor are aligned to the predicted token.
    A micro-batch of weight zero (all masks 0) pads ranks that have fewer than others.
    """

    ids: Int[Tensor, "B L"]
    positions: Int[Tensor, "B L"]
    """Restart at 0 with each sample, and after a shared prompt with each sample that continues it."""
    sequence: Int[Tensor, "B L"]
    """Index of the sample within this micro-batch, -1 on padding; a shared prompt counts as its first sample's."""
    targets: Int[Tensor, "B L"]
    """The token that this position predicts; 0 where nothing is trained."""
    loss_mask: Float[Tensor, "B L"]
    """1.0 where ``targets`` is trained."""
    advantages: Float[Tensor, "B L"]
    behaviour_logprobs: Float[Tensor, "B L"]
    token_weight: Float[Tensor, "B L"]
    """loss_mask times 1/denominator of the aggregation, over the GLOBAL batch: the loss of a step is the plain sum of
    token_weight * per-token loss over all micro-batches of all ranks."""
    index: tuple[int, ...]
    """For each row-sample its place in the step's list of samples."""
    old_logprobs: Float[Tensor, "B L"] | None = None
    """Log-probabilities under the policy before the first of several updates on this batch; None where not needed."""
    ref_logprobs: Float[Tensor, "B L"] | None = None
    """Log-probabilities under the reference model; None without a KL term."""
    teacher_logprobs: Float[Tensor, "B L"] | None = None
    """Log-probabilities under the teacher; None without distillation."""
    old_entropy: Float[Tensor, "B L"] | None = None
    """Entropies of the predictions, from the same pass as ``old_logprobs``."""
    statistics: StepStatistics | None = None
    """Numbers over the optimiser step; None where the objective needs none."""
    layout: SharedPrompts | None = None
    """None where every sample has all its positions."""

    @property
    def tokens(self) -> int:
        """Positions that the forward pass computes, padding included."""
        return self.ids.numel()

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tensors = (Tensor, SharedPrompts)
        moved: dict[str, Any] = {n: value.to(device) for n, value in values.items() if isinstance(value, tensors)}
        return replace(self, **moved)


def request_seed(run_seed: int, problem_id: str, visit: int, sample_index: int, segment: int = 0, done: int = 0) -> int:
    """A 31-bit seed for one request, a hash of what names it.

    No random state of requests exists, so nothing has to be saved: the same run asks for the same noise again, while
    a workflow's next `segment`, a completion continued after `done` tokens and the G completions of a group all get
    noise of their own.
    """
    name = f"{run_seed}|{problem_id}|{visit}|{sample_index}|{segment}" + (f"|{done}" if done else "")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
