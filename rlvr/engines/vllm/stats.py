"""Passes vLLM's per-step statistics to `EngineStats`."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from rlvr.engines.engine_stats import EngineStats


class StatLogger(StatLoggerBase):
    """One of vLLM's loggers; it is called in the process of the caller, once for each step of the engine core."""

    def __init__(self, stats: EngineStats) -> None:
        self.stats = stats

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """One step: running requests from the scheduler, tokens from the outputs, proposals where there were any."""
        if scheduler_stats is None:
            return
        drafts = scheduler_stats.spec_decoding_stats
        self.stats.record(
            scheduler_stats.num_running_reqs,
            0 if iteration_stats is None else iteration_stats.num_generation_tokens,
            *(() if drafts is None else (drafts.num_drafts, drafts.num_draft_tokens, drafts.num_accepted_tokens)),
        )

    def log_engine_initialized(self) -> None:
        """Required by vLLM; does nothing."""
