"""Real vLLM under the schedules: every token has the log-probability of the weights whose version it carries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rewards.combine import Term
from rewards.pool import GradingPool, VerifierSpec
from rlvr.config import Recipe, Template
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.learn.samples import make_samples
from rlvr.problems.templates import Renderer
from rlvr.records import Problem, Rollout
from rlvr.rollout.background import Background
from rlvr.rollout.collector import Collector
from rlvr.rollout.rollouts import Rollouts
from tests.builders import recipe_data
from tests.engine_sides import Learner

STEPS = 5


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool({"words": VerifierSpec("tests.rollout.collector_verifiers:Words")}, workers=1) as pool:
        yield pool


def recipe(schedule: dict[str, Any]) -> Recipe:
    data = recipe_data()
    data["rollout"] |= {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 150, "schedule": schedule}
    data["algorithm"] = {"correction": {"type": "truncate"}}
    return Recipe.model_validate(data)


def apart(rollout: Rollout, logprobs: dict[int, list[float]], version: int) -> float:
    """Largest distance of the tokens of one version from what its weights say."""
    prompt = len(rollout.prompt_ids)
    return max(
        abs(logprobs[version][prompt + place] - value)
        for place, (value, own) in enumerate(zip(rollout.behaviour_logprobs, rollout.weight_version, strict=True))
        if own == version
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "partial", "oversample": 2.0, "max_staleness": 2},
        {"type": "partial", "oversample": 2.0, "max_staleness": 2, "tokens": 40},
        {"type": "asynchronous", "oversample": 2.0, "max_staleness": 2, "cache": "recompute"},
        {"type": "asynchronous", "oversample": 2.0, "max_staleness": 2, "cache": "keep"},
    ],
    ids=["april", "budget", "recompute", "keep"],
)
def test_tokens_fit_the_weights_of_their_versions(
    schedule: dict[str, Any], vllm_tied: VllmEngine, background: Background, tied_learner: Learner, tiny_tied: Path,
    pool: GradingPool,
) -> None:  # fmt: skip
    """Five steps whose weights move visibly. Where keys and values are computed again after an update, every token's
    log-probability is that of the weights it names; where they are kept, that holds up to the first update within an
    completion, and the distance of the rest is what the correction is for. (1e-3: the moved weights have large
    logits.)"""
    renderer = Renderer(Template(type="none"), AutoTokenizer.from_pretrained(tiny_tied))
    settings = recipe(schedule)
    problems = [Problem(id=f"p{i}", prompt=f"say {i}{i}", reference="x", key=str(i)) for i in range(40)]
    collector = Collector(vllm_tied, pool, [Term("words")], renderer, run_seed=0)
    rollouts = Rollouts(settings, vllm_tied, pool, collector, renderer, problems)
    rollouts._background.close()
    rollouts._background = background  # the engine lives in this loop
    queue = iter(problems)
    tied_learner.reset()
    weights, mixed = [], 0
    try:
        for step in range(1, STEPS + 1):
            weights.append({name: tensor.clone() for name, tensor in tied_learner.parameters.items()})
            rollouts.load_weights(weights[-1].items(), step - 1)
            groups = rollouts.take(step, lambda count: [(one, 0) for one in itertools.islice(queue, count)])
            make_samples(groups, settings.algorithm, step, schedule=settings.rollout.schedule)
            for rollout in (one for group in groups for one in group.rollouts):
                mixed += len(set(rollout.weight_version)) > 1
                versions = sorted(set(rollout.weight_version))
                assert list(rollout.weight_version) == sorted(rollout.weight_version)
                logprobs = {}
                for version in versions:
                    tied_learner.model.load_state_dict(weights[version], strict=False)
                    logprobs[version] = tied_learner.logprobs([[*rollout.prompt_ids, *rollout.ids]])[0]
                exact = versions[:1] if schedule.get("cache") == "keep" else versions
                assert all(apart(rollout, logprobs, version) <= 1e-3 for version in exact)
                if len(versions) > 1:
                    assert apart(rollout, logprobs | {versions[1]: logprobs[versions[0]]}, versions[1]) > 0.05
            tied_learner.model.load_state_dict(weights[-1], strict=False)
            tied_learner.perturb(tied_learner.parameters, amplitude=0.5, seed=step)
    finally:
        rollouts.scheduler.buffer.cancel()
        background.wait(vllm_tied.interrupt())
        tied_learner.reset()
    assert mixed > 0
