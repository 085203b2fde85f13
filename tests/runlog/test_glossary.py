import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rewards import Outcome
from rlvr.config import Model, Recipe
from rlvr.config.problems import PrioritisedSampler, Rest
from rlvr.engines.engine_stats import EngineStats
from rlvr.engines.servers.servers import token_shares
from rlvr.learn.samples import make_samples
from rlvr.learn.texts import GivenTexts
from rlvr.learn.update import Learner
from rlvr.problems.sampler import ProblemSampler
from rlvr.records import RolloutGroup, TrainingSample
from rlvr.rollout.buffer import Buffer
from rlvr.rollout.evaluate import summarise
from rlvr.runlog.clock import StepClock
from rlvr.runlog.glossary import SECTIONS, find, markdown, reproducible, undocumented, unlogged
from rlvr.runlog.metrics import (
    memory_metrics,
    refill_metrics,
    rollout_metrics,
    sample_metrics,
    throughput_metrics,
)
from rlvr.runlog.run_log import RunLog
from rlvr.sync.weight_sync import WeightSync
from tests.builders import make_group, make_recipe, make_rollout, recipe_data
from tests.helpers import make_tiny_model


def groups() -> list[RolloutGroup]:
    """Two groups in which everything is defined: right, wrong, cut, unscored, judged by rules and a judge, and a greedy
    completion."""
    hybrid = {"rules": "WRONG", "decided_by": "judge", "judge": {"outcome": "CORRECT"}, "agree": False}
    outcomes = (Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT, Outcome.ERROR)
    found = [
        make_group(
            *(make_rollout(outcome, tokens=3 + i, sample=i, **hybrid) for i, outcome in enumerate(outcomes)),
            problem=name,
        )
        for name in ("a", "b")
    ]
    return [dataclasses.replace(group, greedy=make_rollout(sample=-1)) for group in found]


TEXT = TrainingSample(ids=(3, 4, 5, 2), loss_mask=(0, 0, 1, 1), behaviour_logprobs=(0.0,) * 4, advantage=1.0, group=0)


class SameWeights:
    """An engine side that always has the learner's weights."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        assert sum(1 for _ in tensors) > 0

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.learner.logprobs(sequences)


def logged_by_a_run(folder: Path, **algorithm: object) -> set[str]:
    """Every key that a step and an evaluation write into metrics.jsonl, the learner's from a real update."""
    model = Model(path=str(make_tiny_model(folder / "model")))
    recipe = Recipe.model_validate(recipe_data(folder) | {"algorithm": algorithm})
    accelerator, clock = Accelerator(cpu=True), StepClock()
    learner = Learner(
        model, recipe.learner, recipe.algorithm, total_updates=1, temperature=1.0, accelerator=accelerator,
        texts=None if recipe.algorithm.given_text.type == "none" else GivenTexts([TEXT], 1, seed=0),
    )  # fmt: skip
    weights = WeightSync(learner, accelerator, SameWeights(learner), [(3, 4, 5, 6, 7, 8)])  # type: ignore[arg-type]  # two verbs
    weights.send(version=0)
    samples, counts = make_samples(groups(), recipe.algorithm, 1, schedule=recipe.rollout.schedule)
    counts |= Buffer(recipe.rollout.schedule, 4, []).counts(1, [])
    metrics = rollout_metrics(groups()) | counts | sample_metrics(samples) | refill_metrics(counts, wanted=2)
    metrics |= learner.update(samples, clock=clock) | weights.send(version=1)
    sampler = PrioritisedSampler(type="prioritised", rest=Rest(), retire_at=0.9)
    metrics |= ProblemSampler([group.problem for group in groups()], sampler, seed=0).observe(groups())
    stats = EngineStats()
    stats.record(running=4, tokens=4)
    stats.record(running=4, tokens=6, drafts=4, proposed=8, accepted=2)
    metrics |= stats.take() | token_shares([6, 0])
    metrics |= summarise("held_out", groups(), [1, 2]) | clock.lap() | memory_metrics()
    with RunLog(folder / "test", make_recipe(folder), accelerator) as log:
        log.start(None)
        log.warn("example", "of a warning")
        log.step(1, metrics | throughput_metrics(metrics | {"time/beside/sampling": 1.0}, peak_flops=1e12))
    (line,) = (folder / "test/metrics.jsonl").read_text().splitlines()
    return set(json.loads(line))


def test_logged_keys_are_documented_keys(tmp_path: Path) -> None:
    """No key of a run is missing from the glossary, and no row of the glossary is never logged: the runs differ
    in the slots of the objective that have metrics of their own."""
    in_reward = {"type": "k3", "place": "reward"}
    keys = logged_by_a_run(tmp_path / "a", kl=in_reward, correction={"type": "truncate"}, positive_nll=0.1)
    keys |= logged_by_a_run(
        tmp_path / "b", correction={"type": "mask"}, off_policy_mask=0.1, top_entropy=0.5,
        entropy={"type": "fixed", "coefficient": 0.01}, surrogate={"type": "clip_cov"},
    )  # fmt: skip
    given = {"type": "nll", "path": "unread", "rows": 1, "coefficient": 0.1}
    keys |= logged_by_a_run(tmp_path / "d", given_text=given)
    teacher = {"type": "teacher", "path": str(tmp_path / "a" / "model")}
    keys |= logged_by_a_run(tmp_path / "c", distillation=teacher, filter={"type": "keep"})
    assert undocumented(sorted(keys)) == []
    assert unlogged(keys) == ([] if torch.cuda.is_available() else ["memory/gpu_peak"])


def test_an_unknown_key_is_found() -> None:
    assert undocumented(["reward/mean", "reward/a/b", "eval/x/pass@k", "outcome/x/odd", "mystery"]) == [
        "reward/a/b",
        "eval/x/pass@k",
        "outcome/x/odd",
        "mystery",
    ]


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/accuracy", "reward/{name}"),
        ("eval/math-500.v2/pass@64_low", "eval/{name}/pass@{k}_low"),
        ("outcome/format/bad_format", "outcome/{name}/bad_format"),
    ],
)
def test_an_exact_row_goes_before_a_pattern(key: str, row: str) -> None:
    found = find(key)
    assert found is not None
    assert found.key == row


def test_every_row_is_complete() -> None:
    rows = [metric for _, metrics in SECTIONS for metric in metrics]
    assert len({metric.key for metric in rows}) == len(rows)
    for metric in rows:
        assert metric.meaning.endswith("."), metric.key
        if metric.healthy is not None:
            low, high = metric.healthy
            assert low is not None or high is not None
            assert low is None or high is None or low < high


def test_times_rates_and_memory_are_not_reproducible() -> None:
    metrics = {"reward/mean": 1.0, "time/step": 2.0, "tokens/per_second": 3.0, "memory/peak": 4.0, "time/sync": 5.0}
    assert reproducible(metrics) == {"reward/mean": 1.0}
    for metric in (metric for _, metrics in SECTIONS for metric in metrics):
        timed = metric.unit in ("s", "tokens/s", "GiB") or metric.key.startswith(("mfu/", "engine/"))
        assert metric.is_measured == timed, metric.key


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs/metrics.md"
    assert page.read_text() == markdown(), "run: python -m rlvr.runlog.glossary > docs/metrics.md"


def test_the_page_escapes_bars() -> None:
    assert "mean \\|A\\|" in markdown()
    head = ""
    for line in markdown().splitlines():
        head = line if line.startswith(("| key", "| threshold")) else head
        if line.startswith("| `") and "healthy" in head:
            assert line.replace("\\|", "").count("|") == 6, line
    assert dataclasses.is_dataclass(SECTIONS[0][1][0])
