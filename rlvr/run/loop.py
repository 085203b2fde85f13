"""The training loop: rollout -> grade -> advantage -> update -> sync, and what surrounds them.

| call               | consumes                | produces                  | on ranks                        |
|--------------------|-------------------------|---------------------------|---------------------------------|
| `sampler.next`     | its own state           | P problems                | 0                               |
| `rollouts.take`    | problems, the engine    | P graded groups of G      | 0, the others wait in `update`  |
| `make_samples`     | groups                  | samples with advantages   | 0                               |
| `learner.update`   | samples                 | the next policy           | all: rank 0 packs and scatters  |
| `weights.send`     | the policy's weights    | an engine that has them   | all gather, rank 0 sends        |

Rank 0 owns every decision; the other ranks execute. What surrounds the five calls is evaluation, checkpoints, logs.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

from rlvr.learn.samples import advantages_of, groups_with_tokens, make_samples, places_of
from rlvr.learn.update import NonFiniteError
from rlvr.records import RolloutGroup, TrainingSample
from rlvr.run.build import Coordinator, Run
from rlvr.run.replay import keep_batch
from rlvr.run.signals import STOPPED, TERMINATED, Interrupted
from rlvr.runlog.metrics import memory_metrics, refill_metrics, rollout_metrics, sample_metrics, throughput_metrics


def train(run: Run) -> None:
    """Do the steps of the recipe that the run has not done yet. Raises `Interrupted` where SIGTERM ends it before."""
    with run.preemption:
        start_engine(run)
        if run.done == 0:
            measure_start(run)
        for step in range(run.done + 1, run.recipe.run.steps + 1):
            train_step(run, step)
        run.saver.wait()


def train_step(run: Run, step: int) -> None:
    """One step of all ranks; rank 0 has the groups and the samples, the others have None."""
    clock, coordinator = run.clock, run.coordinator
    before = {} if coordinator is None else coordinator.drawn()
    groups = collect(run, step)
    if run.preemption.agreed():
        stop_early(run, before)
    samples: list[TrainingSample] | None = None
    metrics: dict[str, float] = {}
    shown: set[int] = set()
    if coordinator is not None:
        with clock.phase("pack"):
            samples, counts = make_samples(
                groups, run.recipe.algorithm, step, terms=coordinator.data.terms, average=coordinator.average,
                schedule=run.recipe.rollout.schedule,
            )  # fmt: skip
            metrics |= rollout_metrics(groups) | counts | sample_metrics(samples) | coordinator.rollouts.counts
            metrics |= coordinator.rollouts.engine.measured()
            metrics |= refill_metrics(counts, run.recipe.rollout.prompts_per_step) | coordinator.sampler.observe(groups)
            clock.overlap("sampling", coordinator.rollouts.sampling_time)
            clock.overlap("grade", sum(one.grade_seconds for group in groups for one in group.rollouts))
            shown = groups_with_tokens(groups, samples, run.recipe.run.log_token_groups)
    keep = [index for index, sample in enumerate(samples or ()) if sample.group in shown]
    metrics |= update(run, step, samples, keep)
    if coordinator is not None:
        with clock.phase("generate"):
            coordinator.rollouts.settle()
    with clock.phase("sync"):
        metrics |= run.weights.send(version=step)
    run.done = step
    if is_due(run.recipe.run.eval_every, step, run):
        with clock.phase("eval"):
            metrics |= evaluate(run)
    if coordinator is not None:
        with clock.phase("log"):
            log_rollouts(run, coordinator, step, groups, samples or [], shown)
        metrics |= clock.lap() | memory_metrics()
        metrics |= throughput_metrics(metrics, run.peak_flops)
        watch(run, coordinator, step, metrics)
        coordinator.log.step(step, metrics)
    if is_due(run.recipe.run.save_every, step, run):
        with clock.phase("checkpoint"):
            save(run, metrics)


def collect(run: Run, step: int) -> list[RolloutGroup]:
    """The graded groups of one step, on rank 0; none if SIGTERM came meanwhile."""
    if run.coordinator is None:
        return []
    coordinator = run.coordinator

    def work() -> list[RolloutGroup]:
        return coordinator.rollouts.take(step, coordinator.sampler.next, coordinator.progress("generate"))

    with run.clock.phase("generate"):
        groups = run.preemption.attempt(work)
    if groups is None:
        return []
    run.clock.move("generate", "grade_wait", coordinator.rollouts.grade_wait)
    return groups


def update(run: Run, step: int, samples: list[TrainingSample] | None, keep: list[int]) -> dict[str, float]:
    """The learner's update; a batch that it cannot take is kept for ``rlvr replay``."""
    try:
        return run.learner.update(samples, clock=run.clock, keep=keep)
    except NonFiniteError as error:
        try:
            kept = f"The batch is kept: rlvr replay {keep_batch(run.folder, step, error, run.learner, run.recipe)}"
        except OSError as why:
            kept = f"The batch could not be kept: {why}"
        error.args = (f"{error}. {kept}",)
        raise


def log_rollouts(
    run: Run,
    coordinator: Coordinator,
    step: int,
    groups: list[RolloutGroup],
    samples: list[TrainingSample],
    shown: set[int],
) -> None:
    """Every rollout with its advantage; tokens with both log-probabilities for the groups in `shown`."""
    known = run.learner.kept
    kept = [[None if place is None else known.get(place) for place in row] for row in places_of(groups, samples)]
    coordinator.log.rollouts(
        step, groups, coordinator.prompts_of(groups), advantages_of(groups, samples), token_groups=shown, kept_P_G=kept
    )


def stop_early(run: Run, before: dict[str, Any]) -> NoReturn:
    """End between two steps because SIGTERM came or a rule fired: what was drawn and sampled since
    counts as never begun."""
    why, status = "SIGTERM", TERMINATED
    if run.preemption.agreed_on_rule():
        why, status = run.preemption.rule or "a rule of run.stop_on, which fired on rank 0", STOPPED
    text = f"{why} before the first step was done"
    if run.coordinator is not None:
        run.coordinator.undraw(before)
    if run.done > 0:
        if run.saver.last != run.done:
            save(run, {})
        run.saver.wait()
        text = f"{why} after step {run.done}, which is saved: the same command goes on"
    raise Interrupted(text, status)


def start_engine(run: Run) -> None:
    """Give the engine the policy, proving first that each group of parameters takes effect there."""
    with run.clock.phase("sync"):
        if run.recipe.rollout.self_test:
            lines = run.weights.prove(version=run.done)
            if run.coordinator is not None:
                run.coordinator.log.say("the engine follows the learner in " + "; ".join(lines))
        run.weights.send(version=run.done)


def watch(run: Run, coordinator: Coordinator, step: int, metrics: dict[str, float]) -> None:
    """Let the doctor's rules see a step; one of ``run.stop_on`` that fires ends the run before the next."""
    if (finding := coordinator.watch.see(step, metrics)) is not None:
        run.preemption.stop(f"rule {finding.rule} ({finding.message})")


def measure_start(run: Run) -> None:
    """Evaluate the starting policy: step 0 of the metrics."""
    if run.coordinator is not None and run.recipe.problems.eval:
        with run.clock.phase("eval"):
            metrics = evaluate(run)
        metrics |= run.clock.lap()
        watch(run, run.coordinator, 0, metrics)
        run.coordinator.log.step(0, metrics)


def evaluate(run: Run) -> dict[str, float]:
    """``eval/...`` of every eval set of the recipe; on rank 0, while the others wait for its next update."""
    metrics: dict[str, float] = {}
    if run.coordinator is not None:
        for one, problems in run.coordinator.data.eval_sets:
            run.coordinator.log.phase(f"eval {one.name}")
            metrics |= run.coordinator.rollouts.evaluate(one, problems)[0]
    return metrics


def is_due(every: int | None, step: int, run: Run) -> bool:
    """True every so many steps and at the last."""
    return step == run.recipe.run.steps or (every is not None and step % every == 0)


def save(run: Run, metrics: dict[str, float]) -> None:
    """A checkpoint of everything that registered itself: all ranks gather, rank 0 writes, beside the next step."""
    if run.coordinator is not None:
        run.coordinator.log.sync()
    finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
    recipe = run.recipe.model_dump(mode="json", by_alias=True)
    extra = {"metrics": finite, "recipe": recipe, "processes": run.accelerator.num_processes}
    run.saver.save(run.done, run.learner.policy_writer, extra)
