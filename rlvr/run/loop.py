"""The training loop. One step samples, grades, computes advantages, updates the policy and sends it to the engine.

| call in `train_step` | takes                   | gives                                 | runs on                     |
|----------------------|-------------------------|---------------------------------------|-----------------------------|
| `collect`            | problems, the engine    | P graded groups of G rollouts         | rank 0; the others wait     |
| `make_batch`         | groups                  | samples with advantages               | rank 0                      |
| `update`             | samples                 | the next policy                       | all; rank 0 packs, scatters |
| `send_weights`       | the policy's weights    | an engine that samples from them      | all gather, rank 0 sends    |
| `evaluate_if_due`    | the engine, eval sets   | `eval/...`                            | rank 0                      |
| `report`             | everything above        | log lines, metrics, findings of rules | rank 0                      |
| `save_if_due`        | the state of every part | a checkpoint                          | all gather, rank 0 writes   |

Rank 0 is the coordinator: it makes every decision, and the other ranks carry them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import rlvr.control as control
from rlvr.learn.optimiser_step import NonFiniteError
from rlvr.learn.samples import advantages_of, groups_with_tokens, make_samples, places_of
from rlvr.records import RolloutGroup, TrainingSample
from rlvr.run.build import Coordinator, Run
from rlvr.run.replay import keep_batch
from rlvr.run.signals import INTERRUPTED, STOPPED, TERMINATED, Interrupted
from rlvr.runlog.metrics import memory_metrics, refill_metrics, rollout_metrics, sample_metrics, throughput_metrics


def train(run: Run) -> None:
    """Do the steps of the recipe that the run has not done yet. Raises `Interrupted` where a signal ends it before."""
    try:
        with run.preemption:
            start_engine(run)
            if run.done == 0:
                measure_start(run)
            for step in range(run.done + 1, run.recipe.run.steps + 1):
                train_step(run, step)
            run.saver.wait()
    except Interrupted as stop:
        if stop.status == INTERRUPTED:
            stop.add_note(how_to_go_on(run))
        raise


def how_to_go_on(run: Run) -> str:
    """What the same command will do after an interrupted run."""
    saved = run.saver.last or 0
    if saved == 0:
        return "no step was saved: the same command begins again"
    again = f", and does step {saved + 1} again" if run.done == saved + 1 else ""
    again = f", and does steps {saved + 1} to {run.done} again" if run.done > saved + 1 else again
    return f"the same command goes on after step {saved}, the last that was saved{again}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The coordinator's batch from one step's groups; on the other ranks it is empty."""

    groups: list[RolloutGroup] = field(default_factory=list)
    samples: list[TrainingSample] | None = None
    """None on every rank but the coordinator's: its `Learner.update` scatters them."""
    shown: set[int] = field(default_factory=set)
    """Indices of the groups whose tokens are logged."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What is known before the update."""

    def samples_to_log(self) -> list[int]:
        """Indices of the samples that belong to a group in `shown`."""
        return [index for index, sample in enumerate(self.samples or ()) if sample.group in self.shown]


def train_step(run: Run, step: int) -> None:
    """One step of all ranks, in the order of the table above; only the coordinator has groups and samples."""
    groups = collect(run, step)
    batch = make_batch(run, step, groups)
    metrics = batch.metrics | update(run, step, batch)
    metrics |= send_weights(run, step)
    metrics |= evaluate_if_due(run, step)
    metrics |= report(run, step, batch, metrics)
    save_if_due(run, step, metrics)


def collect(run: Run, step: int) -> list[RolloutGroup]:
    """The graded groups of one step, in the order of drawing; none on ranks that do not coordinate.

    Raises `Interrupted` on every rank if SIGTERM or a rule of ``run.stop_on`` came before the update.
    """
    coordinator = run.coordinator
    groups: list[RolloutGroup] | None = None
    before: dict[str, Any] = {}
    if coordinator is not None:
        before = coordinator.drawn()
        take = partial(coordinator.rollouts.take, step, coordinator.sampler.next, coordinator.progress("generate"))
        with run.clock.phase("generate"):
            groups = run.preemption.attempt(take)
        if groups is not None:
            run.clock.move("generate", "grade_wait", coordinator.rollouts.scheduler.grade_wait)
    if run.preemption.agreed():
        stop_early(run, before)
    return groups or []


def make_batch(run: Run, step: int, groups: list[RolloutGroup]) -> Batch:
    """Samples with advantages, and what the step's rollouts were like."""
    coordinator, recipe, clock = run.coordinator, run.recipe, run.clock
    if coordinator is None:
        return Batch()
    rollouts = coordinator.rollouts
    with clock.phase("pack"):
        samples, counts = make_samples(
            groups, recipe.algorithm, step, terms=coordinator.data.terms, average=coordinator.average,
            schedule=recipe.rollout.schedule,
        )  # fmt: skip
        metrics = rollout_metrics(groups) | counts | sample_metrics(samples) | rollouts.scheduler.counts
        metrics |= rollouts.engine.measured()
        metrics |= refill_metrics(counts, recipe.rollout.prompts_per_step) | coordinator.sampler.observe(groups)
        clock.overlap("sampling", rollouts.scheduler.sampling_time)
        clock.overlap("grade", sum(rollout.grade_seconds for group in groups for rollout in group.rollouts))
        shown = groups_with_tokens(groups, samples, recipe.run.log_token_groups)
    return Batch(groups=groups, samples=samples, shown=shown, metrics=metrics)


def update(run: Run, step: int, batch: Batch) -> dict[str, float]:
    """The learner's update; a batch that it cannot take is kept for ``rlvr replay``."""
    try:
        return run.learner.update(batch.samples, clock=run.clock, keep=batch.samples_to_log())
    except NonFiniteError as error:
        try:
            kept = f"The batch is kept: rlvr replay {keep_batch(run.folder, step, error, run.learner, run.recipe)}"
        except OSError as why:
            kept = f"The batch could not be kept: {why}"
        error.args = (f"{error}. {kept}",)
        raise


def send_weights(run: Run, step: int) -> dict[str, float]:
    """The new policy to the engine, as version `step`; this completes the step."""
    if run.coordinator is not None:
        with run.clock.phase("generate"):
            run.coordinator.rollouts.settle()
    control.wait()
    with run.clock.phase("sync"):
        metrics = run.weights.send(version=step)
    run.done = step
    return metrics


def evaluate_if_due(run: Run, step: int) -> dict[str, float]:
    """``eval/...`` after a step that ``run.eval_every`` names."""
    if not is_due(run.recipe.run.eval_every, step, run):
        return {}
    with run.clock.phase("eval"):
        return evaluate(run)


def report(run: Run, step: int, batch: Batch, metrics: dict[str, float]) -> dict[str, float]:
    """Rollouts, metrics and the rules over them, on the coordinator; returns the metrics that it adds (times, memory,
    throughput)."""
    coordinator, clock = run.coordinator, run.clock
    if coordinator is None:
        return {}
    with clock.phase("log"):
        log_rollouts(run, coordinator, step, batch)
    added = clock.lap() | memory_metrics()
    added |= throughput_metrics(metrics | added, run.peak_flops)
    watch(run, coordinator, step, metrics | added)
    coordinator.log.step(step, metrics | added)
    return added


def log_rollouts(run: Run, coordinator: Coordinator, step: int, batch: Batch) -> None:
    """Every rollout with its advantage; tokens with both log-probabilities for the groups in ``batch.shown``."""
    groups, samples, known = batch.groups, batch.samples or [], run.learner.logged_logprobs
    kept_P_G = [[None if place is None else known.get(place) for place in row] for row in places_of(groups, samples)]
    coordinator.log.rollouts(
        step, groups, coordinator.prompts_of(groups), advantages_of(groups, samples), token_groups=batch.shown,
        kept_P_G=kept_P_G,
    )  # fmt: skip


def save_if_due(run: Run, step: int, metrics: dict[str, float]) -> None:
    """A checkpoint after a step that ``run.save_every`` names."""
    if is_due(run.recipe.run.save_every, step, run):
        with run.clock.phase("checkpoint"):
            save(run, metrics)


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
            proof = run.weights.prove(version=run.done)
            if run.coordinator is not None:
                run.coordinator.log.say(f"the engine follows the learner: {proof}")
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
        for eval_set, problems in run.coordinator.data.eval_sets:
            run.coordinator.log.phase(f"eval {eval_set.name}")
            numbers, groups = run.coordinator.rollouts.evaluate(eval_set, problems)
            metrics |= numbers
            run.coordinator.log.evaluation(run.done, eval_set.name, groups, run.coordinator.prompts_of(groups))
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
