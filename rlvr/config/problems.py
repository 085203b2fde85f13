"""Recipe sections: where problems come from and how they become prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlvr.config.base import Fraction01, ImportPath, NonNegativeFloat, NonNegativeInt, Section


class JsonLinesConfig(Section):
    """A file with one JSON object a line."""

    type: Literal["jsonl"]
    path: str
    """File, relative to the current directory."""
    prompt: str = "problem"
    """Column that holds the question (text or chat messages)."""
    reference: str = "answer"
    """Column that holds what completions are graded against."""
    reference_format: Literal["plain", "gsm8k", "boxed"] = "plain"
    """``gsm8k``: the text after the last ``####``; ``boxed``: the content of the last ``\\boxed{}``."""
    limit: PositiveInt | None = None
    """Use only the first so many rows."""


class HubDataset(Section):
    """A data set that the `datasets` library loads: a name on the hub, a local folder or a single file."""

    type: Literal["datasets"]
    path: str
    """A name on the hub; a folder that `save_to_disk` wrote; a folder of CSV, Parquet, Arrow or JSON files; or one such
    file, which is the split ``train``."""
    subset: str | None = None
    split: str = "train"
    prompt: str = "problem"
    """Column with the question: text, or a list of chat messages as TRL's data sets have them."""
    reference: str = "answer"
    reference_format: Literal["plain", "gsm8k", "boxed"] = "plain"
    where: dict[str, list[Any]] = {}
    """Keep rows whose column has one of these values, e.g. ``{level: [Level 3, Level 4, Level 5]}``."""
    limit: PositiveInt | None = None


class Arithmetic(Section):
    """Generated questions of two operands, e.g. ``What is 3*7?``."""

    type: Literal["arithmetic"]
    operator: Literal["+", "-", "*"] = "*"
    low: int = 2
    """Smallest operand."""
    high: int = 12
    """Largest operand."""
    question: str = "What is {a}{op}{b}?"
    """Python format string with a, b and op."""
    held_out: Fraction01 = 0.0
    """Share of the different problems (3*7 and 7*3 are one) that the split ``eval`` gets and ``train`` never sees."""
    split: Literal["train", "eval", "all"] = "all"
    seed: int = 0
    """Decides which problems are held out; the same for train and eval."""

    @model_validator(mode="after")
    def _range(self) -> Arithmetic:
        if self.high < self.low:
            raise ValueError(f"high must be at least low = {self.low}, got {self.high}")
        if self.split != "all" and self.held_out == 0.0:
            raise ValueError(f"split {self.split!r} needs held_out above 0: nothing would tell train and eval apart")
        return self


class Countdown(Section):
    """Generated Countdown games: reach a target from given numbers, each used once."""

    type: Literal["countdown"]
    size: PositiveInt = 1000
    """How many games."""
    numbers: Annotated[list[int], Field(min_length=2, max_length=2)] = [3, 4]
    """Fewest and most given numbers."""
    low: PositiveInt = 1
    high: PositiveInt = 100
    target_high: PositiveInt = 100
    """Targets lie between 1 and this."""
    held_out: Fraction01 = 0.0
    split: Literal["train", "eval", "all"] = "all"
    seed: int = 0


class ReasoningGym(Section):
    """A data set of the package reasoning-gym (extra ``[gym]``), scored by its own scorer."""

    type: Literal["reasoning_gym"]
    dataset: str
    """Its name there, e.g. ``chain_sum``."""
    size: PositiveInt = 1000
    seed: int = 0
    config: dict[str, Any] = {}
    """Settings of that data set."""


class Benchmark(Section):
    """A named benchmark, from the hub or from a local file of its rows."""

    type: Literal["benchmark"]
    name: Literal["gsm8k", "math500", "aime24", "amc23", "humaneval"]
    path: str | None = None
    """A JSON-lines file; None takes the hub."""
    limit: PositiveInt | None = None


Source = Annotated[
    JsonLinesConfig | HubDataset | Arithmetic | Countdown | ReasoningGym | Benchmark, Field(discriminator="type")
]


class RewardTerm(Section):
    """One verifier and its share of the reward."""

    name: Annotated[str, Field(pattern=r"^\w+$")]
    """Names the metrics ``reward/NAME``."""
    verifier: ImportPath
    """Class with ``check_reference`` and ``grade``; a module in the current directory is found."""
    args: dict[str, Any] = {}
    """Its constructor's arguments."""
    weight: float = 1.0
    gate: str | None = None
    """Another term that must have full marks for this one to count."""


class EvalSet(Section):
    """A set of problems on which the policy is measured and never trained."""

    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    """Names the metrics ``eval/NAME/...`` and the folder ``evaluations/NAME`` of its completions."""
    source: Source
    samples: PositiveInt = 1
    """Completions to each problem; pass@k needs at least k."""
    k: list[PositiveInt] = [1]
    """pass@k and maj@k are reported for these k."""
    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    greedy: bool = False
    """One more completion to each problem, at temperature 0, for ``eval/NAME/greedy``: it tells a policy that changed
    its mind from one that grew surer of it. Left out where `temperature` is 0 already."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: PositiveInt | None = None
    """None takes the rollout's."""
    terms: list[RewardTerm] | None = None
    """Who judges this set's completions; None takes the terms of `rewards`."""

    @model_validator(mode="after")
    def _enough(self) -> EvalSet:
        if max(self.k) > self.samples:
            raise ValueError(f"samples must be at least the largest k = {max(self.k)}, got {self.samples}")
        if self.temperature == 0.0 and self.samples > 1:
            raise ValueError(f"samples must be 1 at temperature 0 (all completions would be equal), got {self.samples}")
        return self


class Rest(Section):
    """Skip a problem for `epochs` epochs after `visits` visits in a row in which every completion was right (or every
    one wrong)."""

    visits: PositiveInt = 2
    """Visits in a row after which it rests; after the rest they are counted anew."""
    epochs: PositiveInt = 1
    """Epochs that it is left out of."""
    when: Literal["solved", "unsolved", "both"] = "both"
    """Every completion a success, none, or either."""


class SamplerOptions(Section):
    """Options of every sampler: how success rates are counted, and what they decide."""

    success: float = 1.0
    """A completion counts as a success if its reward, before shaping, is at least this."""
    memory: Fraction01 = 0.5
    """Share of a problem's earlier successes and completions that still counts after one more visit: 1 weighs all
    visits alike, 0 knows the last one alone."""
    rest: Rest | None = None
    """None lets no problem rest."""
    retire_at: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """A problem whose success rate has reached this is never drawn again (no-positive-resampling, ScaleRL, 2510.13786:
    0.9)."""


class ShuffledSampler(SamplerOptions):
    """Every problem once per epoch, in a new order each epoch."""

    type: Literal["shuffled"] = "shuffled"


class AsGivenSampler(SamplerOptions):
    """Every problem once an epoch, in the order of the data."""

    type: Literal["as_given"]


class CurriculumSampler(SamplerOptions):
    """First epochs in shuffled order, then each from the easiest problem to the hardest (Kimi k1.5, 2501.12599, 2.3.4);
    equally hard ones are shuffled."""

    type: Literal["curriculum"]
    column: str = "pass_rate"
    """Column that says how hard a problem is: of the data, or of `problems.difficulty`."""
    easy: Literal["low", "high"] | Annotated[list[Any], Field(min_length=2)] = "high"
    """Which end of its numbers is easy; or all of its values from the easiest to the hardest, e.g.
    ``[Level 1, Level 2, Level 3]``."""
    warmup_epochs: NonNegativeInt = 1
    """Epochs in shuffled order."""
    hardest: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the problems, the hardest, that the epochs after the warm-up hold."""


class PrioritisedSampler(SamplerOptions):
    """Draws in proportion to 1 - success rate (Kimi k1.5, 2501.12599, 2.3.4), 1 before the first visit; the problems of
    one draw are different. An epoch is as many draws as there are problems."""

    type: Literal["prioritised"]
    floor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """The least weight, of problems that are always solved: nothing is out of the game."""


Sampler = Annotated[
    ShuffledSampler | AsGivenSampler | CurriculumSampler | PrioritisedSampler, Field(discriminator="type")
]


class Problems(Section):
    """Where problems come from."""

    train: Source
    eval: list[EvalSet] = []
    overlap: Literal["refuse", "drop", "report"] = "refuse"
    """What to do with training problems that an eval set also holds (by canonical key): stop, leave them out, or only
    say so."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with problems whose prompt and `max_new_tokens` do not fit into the model's context: stop, or leave
    them out and say how many."""
    difficulty: str | None = None
    """A file that ``rlvr generate --difficulty`` wrote: its columns pass_rate, mean_length and guess_rate join those of
    the training problems, by canonical key."""
    keep: dict[str, tuple[float | None, float | None]] = {}
    """Columns and the range, ends included, that a training problem must lie in: ``{pass_rate: [0.1, 0.9]}``;
    ``{guess_rate: [null, 0]}`` leaves out what is guessed without reasoning (Kimi k1.5)."""
    sampler: Sampler = ShuffledSampler()
    """Which problem comes next."""

    @model_validator(mode="after")
    def _names(self) -> Problems:
        names = [eval_set.name for eval_set in self.eval]
        if len(set(names)) != len(names):
            raise ValueError(f"eval sets need different names, got {names}")
        for name, (low, high) in self.keep.items():
            if (low is None and high is None) or (low is not None and high is not None and low > high):
                raise ValueError(f"keep.{name} must be [lowest, highest], null for no end, got [{low}, {high}]")
        return self


class Template(Section):
    """How a question becomes a prompt."""

    type: Literal["r1_zero", "r1_zero_think", "qwen_math", "chat", "none", "jinja"]
    """``r1_zero`` is word for word the paper's, ``r1_zero_think`` also begins the completion with ``<think>``."""
    path: str | None = None
    """The file of type ``jinja``, in the current directory or beside the recipe; it sees ``question``, ``messages`` and
    the special tokens."""
    system: str | None = None
    """A system message for type ``chat``."""
    prefill: str = ""
    """Text that begins the completion (types ``chat`` and ``jinja``); graders see it, the policy is not trained on
    it."""
    stop: list[str] | None = None
    """Strings that end a completion; None takes the template's own."""

    @model_validator(mode="after")
    def _fits(self) -> Template:
        if (self.type == "jinja") != (self.path is not None):
            raise ValueError(f"path belongs to type 'jinja' and only to it, got type {self.type!r}, path {self.path!r}")
        if self.system is not None and self.type != "chat":
            raise ValueError(f"system belongs to type 'chat', got type {self.type!r}")
        if self.prefill and self.type not in ("chat", "jinja"):
            raise ValueError(f"prefill belongs to types 'chat' and 'jinja', got type {self.type!r}")
        return self
