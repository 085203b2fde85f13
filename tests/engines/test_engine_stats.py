"""What an engine measures of itself, by hand, and the recipe's words for who proposes tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from vllm.config.speculative import SpeculativeConfig
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from rlvr.config import Recipe, RecipeError
from rlvr.config.speculative import Speculative
from rlvr.engines.engine_stats import EngineStats
from rlvr.engines.make import make_engine
from rlvr.engines.restarting import RestartingEngine
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.engines.vllm.settings import speculative_config
from rlvr.engines.vllm.stats import StatLogger
from tests.builders import recipe_data


def test_speeds_by_hand() -> None:
    """Steps end at 0, 1, 3, 4, 10, 11 s. 5 requests run from 0 to 3 s (5 + 9 tokens: 14 in 3 s, sizes 4 to 7), 2 from 3
    to 4 s (2 tokens in 1 s), none from 4 to 10 s, 1 from 10 to 11 s (1 token in 1 s)."""
    times = iter([0.0, 1.0, 3.0, 4.0, 10.0, 11.0])
    stats = EngineStats(lambda: next(times))
    for running, tokens in [(5, 5), (5, 5), (2, 9), (0, 2), (1, 0), (0, 1)]:
        stats.record(running, tokens)
    assert stats.take() == {
        "engine/tokens_per_second/1": 1.0, "engine/tokens_per_second/2": 2.0, "engine/tokens_per_second/4": 14 / 3
    }  # fmt: skip
    assert stats.take() == {}


def test_a_pause_counts_for_nothing() -> None:
    times = iter([0.0, 100.0, 101.0])
    stats = EngineStats(lambda: next(times))
    stats.record(8, 8)
    stats.pause()
    stats.record(8, 8)
    stats.record(8, 8)
    assert stats.take() == {"engine/tokens_per_second/8": 8.0}


def test_acceptance_by_hand_from_vllms_own_records() -> None:
    """Two steps: 3 proposals of 4 tokens with 4, 1, 0 accepted, then one of 2 with 2: 7 of 14, and 1 + 7 / 4 tokens a
    step and request. A record without scheduler statistics is none."""
    stats = EngineStats()
    logger = StatLogger(stats)
    for drafts in ([(4, 4), (4, 1), (4, 0)], [(2, 2)]):
        found = SpecDecodingStats.new(4)
        for proposed, accepted in drafts:
            found.observe_draft(proposed, accepted)
        logger.record(
            SchedulerStats(num_running_reqs=3, spec_decoding_stats=found), SimpleNamespace(num_generation_tokens=5)
        )
    logger.record(None, None)
    logger.record(SchedulerStats(), None)
    found_metrics = stats.take()
    assert found_metrics["engine/acceptance_rate"] == 0.5
    assert found_metrics["engine/acceptance_length"] == 1 + 7 / 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "ngram"}, {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2,
                             "prompt_lookup_max": 4}),
        ({"type": "suffix", "tokens": 8}, {"method": "suffix", "num_speculative_tokens": 8}),
        ({"type": "draft_model", "path": "a"}, {"method": "draft_model", "num_speculative_tokens": 3, "model": "a"}),
        ({"type": "eagle3", "path": "a", "tokens": 5}, {"method": "eagle3", "num_speculative_tokens": 5, "model": "a"}),
    ],
)  # fmt: skip
def test_every_type_in_vllms_words(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each key is one of vLLM's SpeculativeConfig, which refuses others."""
    found = speculative_config(TypeAdapter(Speculative).validate_python(settings))
    assert found == expected
    assert set(found) <= set(SpeculativeConfig.__dataclass_fields__)


def recipe_with(engine: dict[str, Any], **rollout: Any) -> Recipe:
    data = recipe_data()
    data["rollout"] |= {"engine": {"type": "vllm", **engine}, **rollout}
    return Recipe.model_validate(data)


@pytest.mark.parametrize(
    ("engine", "rollout", "said"),
    [
        (
            {"speculative": {"type": "ngram"}},
            {"min_p": 0.1},
            "min_p must be 0 with engine.speculative 'ngram', got 0.1",
        ),
        ({"speculative": {"type": "ngram", "shortest": 5}}, {}, "shortest must be at most longest = 4, got 5"),
        ({"speculative": {"type": "draft_model"}}, {}, r"(?s)path.*Field required"),
        ({"speculative": {"type": "medusa"}}, {}, "medusa"),
    ],
)
def test_what_cannot_work_is_refused(engine: dict[str, Any], rollout: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe_with(engine, **rollout)


def test_speculation_is_for_gpus_and_refused_on_a_cpu_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with({"speculative": {"type": "ngram"}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = make_engine(recipe, 64, tmp_path / "log", lambda name, message: None)
    assert isinstance(engine, RestartingEngine)
    assert isinstance(engine.inner, VllmEngine)
    assert engine.inner._settings.arguments(on_cpu=False, gpu_transfer="x")["speculative_config"]["method"] == "ngram"
    assert engine.measured() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"rollout.engine.speculative must be null on a CPU, got type 'ngram'.*leave"):
        make_engine(recipe, 64, tmp_path / "log", lambda name, message: None)


def test_the_reason_still_holds() -> None:
    """vLLM's stand-in for the kernel that spreads temperatures over proposed tokens leaves its output as it was, where
    it must be 0.5, 0.5, 1, 1, 1, 2: when this fails, the refusal above has to go."""
    from vllm.platforms import current_platform
    from vllm.utils.cpu_triton_utils import _expand_kernel_impl

    current_platform.import_kernels()
    output = torch.full((6,), -7.0)
    _expand_kernel_impl(output, torch.tensor([0.5, 1.0, 2.0]), torch.tensor([2, 5, 6]), 0, 1)
    assert output.tolist() == [-7.0] * 6
