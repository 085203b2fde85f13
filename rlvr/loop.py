"""The training loop: rollout -> grade -> advantage -> update -> sync, and what surrounds them.

| call               | consumes                | produces                  | on ranks                        |
|--------------------|-------------------------|---------------------------|---------------------------------|
| `sampler.next`     | its own state           | P problems                | 0                               |
| `rollouts.fill`    | problems, the engine    | P graded groups of G      | 0, the others wait in `update`  |
| `make_samples`     | groups                  | samples with advantages   | 0                               |
| `learner.update`   | samples                 | the next policy           | all: rank 0 packs and scatters  |
| `weights.send`     | the policy's weights    | an engine that has them   | all gather, rank 0 sends        |

Rank 0 owns every decision; the other ranks execute. What surrounds the five calls is evaluation, checkpoints, logs.
"""

from __future__ import annotations

from rlvr import checkpoint
from rlvr.build import Run
from rlvr.learn.samples import advantages_of, make_samples
from rlvr.metrics import memory_metrics, refill_metrics, rollout_metrics, sample_metrics, throughput_metrics
from rlvr.records import RolloutGroup, TrainingSample


def train(run: Run) -> None:
    """Do the steps of the recipe that the run has not done yet."""
    start_engine(run)
    if run.done == 0:
        measure_start(run)
    for step in range(run.done + 1, run.recipe.run.steps + 1):
        train_step(run, step)


def train_step(run: Run, step: int) -> None:
    """One step of all ranks; rank 0 has the groups and the samples, the others have None."""
    clock, zero = run.clock, run.zero
    groups: list[RolloutGroup] = []
    samples: list[TrainingSample] | None = None
    metrics: dict[str, float] = {}
    if zero is not None:
        with clock.phase("generate"):
            groups = zero.rollouts.fill(zero.sampler.next, zero.progress("generate"))
        clock.move("generate", "grade_wait", zero.rollouts.grade_wait)
        with clock.phase("pack"):
            samples, counts = make_samples(
                groups, run.recipe.algorithm, step, terms=zero.data.terms, average=zero.average
            )
            metrics |= rollout_metrics(groups) | counts | sample_metrics(samples)
            metrics |= refill_metrics(counts, run.recipe.rollout.prompts_per_step)
            clock.overlap("grade", sum(one.grade_seconds for group in groups for one in group.rollouts))
    metrics |= run.learner.update(samples, clock=clock)
    with clock.phase("sync"):
        metrics |= run.weights.send(version=step)
    run.done = step
    if is_due(run.recipe.run.eval_every, step, run):
        with clock.phase("eval"):
            metrics |= evaluate(run)
    if zero is not None:
        with clock.phase("log"):
            zero.log.rollouts(step, groups, zero.prompts_of(groups), advantages_of(groups, samples or []))
        metrics |= clock.lap() | memory_metrics()
        zero.log.step(step, metrics | throughput_metrics(metrics, run.peak_flops))
    if is_due(run.recipe.run.save_every, step, run):
        with clock.phase("checkpoint"):
            save(run, step)


def start_engine(run: Run) -> None:
    """Give the engine the policy, proving first that each group of parameters takes effect there."""
    with run.clock.phase("sync"):
        if run.recipe.rollout.self_test:
            lines = run.weights.prove(version=run.done)
            if run.zero is not None:
                run.zero.log.say("the engine follows the learner in " + "; ".join(lines))
        run.weights.send(version=run.done)


def measure_start(run: Run) -> None:
    """Evaluate the starting policy: step 0 of the metrics."""
    if run.zero is not None and run.recipe.problems.eval:
        with run.clock.phase("eval"):
            metrics = evaluate(run)
        run.zero.log.step(0, metrics | run.clock.lap())


def evaluate(run: Run) -> dict[str, float]:
    """``eval/...`` of every eval set of the recipe; on rank 0, while the others wait for its next update."""
    metrics: dict[str, float] = {}
    if run.zero is not None:
        for one, problems in run.zero.data.eval_sets:
            run.zero.log.phase(f"eval {one.name}")
            metrics |= run.zero.rollouts.evaluate(one, problems)[0]
    return metrics


def is_due(every: int | None, step: int, run: Run) -> bool:
    """True every so many steps and at the last."""
    return step == run.recipe.run.steps or (every is not None and step % every == 0)


def save(run: Run, step: int) -> None:
    """A checkpoint of everything that registered itself: all ranks gather, rank 0 writes."""
    if run.zero is not None:
        run.zero.log.sync()
    checkpoint.save(run.folder, step, run.learner.save_policy, run.register, run.accelerator, keep=run.recipe.run.keep)
