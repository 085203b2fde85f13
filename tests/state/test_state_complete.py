"""Nothing that holds state is left out of a checkpoint: a resumed run holds what one holds that was not interrupted.

Every object of rlvr's that can be reached from the run is compared, value by value, whether it says that it has state
or not. Whoever adds something to the loop that remembers anything either registers it, or names it in `EXEMPT` with the
reason why it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlvr.config import load_recipe
from rlvr.rollout.collector import Collector
from rlvr.run import loop
from rlvr.run.build import Run, build
from rlvr.state.register import StateRegister
from tests.object_graph import contents
from tests.runs import Workspace, elsewhere

EXEMPT = {
    ".accelerator": "the launcher's settings, and the learner's own objects once more",
    ".recipe": "what both were given",
    ".register": "the owners once more",
    ".clock": "times",
    ".preemption": "signal handlers",
    ".peak_flops": "a measured speed",
    ".learner.logged_logprobs": "what the last update was asked to show; the next one replaces it unread",
    ".saver": "which checkpoint was written last, and the thread that writes; tested in test_saver",
    ".coordinator.log._display": "what the console shows",
    ".coordinator.log._lock": "a file descriptor",
    ".coordinator.log._metrics._file": "a file descriptor",
    ".coordinator.log._rollouts._file": "a file descriptor",
    ".weights._rollouts._pool": "worker processes and their statistics of time; they grade each completion alone",
    ".weights._rollouts._collector._engine._worker": "the batch under way",
    ".weights._rollouts.scheduler.grade_wait": "a time",
    ".weights._rollouts.scheduler.sampling_time": "a time",
    ".weights._rollouts.scheduler._busy_before": "a time",
    ".weights._rollouts.scheduler._gate": "which groups have asked: nothing between steps",
    ".weights._rollouts.scheduler._activity": "what runs at this moment, and times: nothing between steps",
    ".weights._rollouts.scheduler.counts": "metrics of the last step",
    ".weights._rollouts._collector.last_sampled": "a time",
}


def held(workspace: Workspace, act: Callable[[Run], None]) -> dict[str, str]:
    """What a run of the workspace holds after `act`."""
    with elsewhere(workspace.folder):
        workspace.save_recipe()
        with build(load_recipe("recipe.yaml")) as run:
            act(run)
            return contents(run, EXEMPT)


def different(one: dict[str, str], other: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """The places where two runs differ."""
    return {key: (one.get(key), other.get(key)) for key in {*one, *other} if one.get(key) != other.get(key)}


@pytest.fixture
def work(workspace: Workspace) -> Workspace:
    """Three steps, saved after the second; with everything on that keeps something from step to step."""
    workspace.recipe["run"] |= {"steps": 3, "save_every": 2}
    workspace.recipe["algorithm"] |= {"kl": {"type": "k3"}}
    workspace.recipe["problems"]["sampler"] = {"type": "prioritised", "rest": {"visits": 1}, "retire_at": 1.0}
    return workspace


def two_steps(run: Run) -> None:
    """The first two of the recipe's three steps: a run that is done is not built again from its checkpoint."""
    with run.preemption:
        loop.start_engine(run)
        loop.measure_start(run)
        for step in (1, 2):
            loop.train_step(run, step)
        run.saver.wait()


@pytest.mark.slow
def test_a_resumed_run_holds_what_an_uninterrupted_one_holds(work: Workspace) -> None:
    """Theorem: after two steps, the objects of the run that did them and of one that was built from its checkpoint
    and has given the engine its weights hold the same, weights, moments, order of problems, windows and counts."""
    whole = held(work, two_steps)
    assert len(whole) > 300
    assert whole[".done"] == "2"
    for part in ("learner.policy", "learner.backend._optimizer", "weights._probe", "coordinator.sampler._position"):
        assert any(key.startswith(f".{part}") for key in whole), part
    assert different(held(work, loop.start_engine), whole) == {}


@pytest.mark.slow
def test_a_step_changes_what_is_held(work: Workspace) -> None:
    """Or the theorem above would say nothing: a run that did not train differs in each of these."""
    trained = held(work, two_steps)
    work.recipe["name"] = "other"
    fresh = held(work, loop.start_engine)
    for part in (".done", ".learner.updates", ".learner.policy", ".learner.backend._optimizer", ".weights._probe",
                 ".coordinator.sampler._position", ".weights._rollouts._collector._engine._version"):  # fmt: skip
        assert any(key.startswith(part) for key in different(trained, fresh)), part


@pytest.mark.slow
def test_an_object_with_state_that_is_not_registered_is_found(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that counts its groups, as a mistake would have it: its place is named."""
    real = Collector.group

    def counting(self: Collector, *arguments: Any, **settings: Any) -> Any:
        self.count = getattr(self, "count", 0) + 1  # type: ignore[attr-defined]  # the mistake
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Collector, "group", counting)
    found = different(held(work, loop.start_engine), held(work, loop.train))
    assert set(found) >= {".weights._rollouts._collector.count"}


def test_all_that_says_it_has_state_is_registered_or_belongs_to_what_is(work: Workspace) -> None:
    """No object of rlvr's with ``state_dict`` and ``load_state_dict`` is reached without passing a registered owner."""
    with elsewhere(work.folder):
        work.save_recipe()
        with build(load_recipe("recipe.yaml")) as run:
            owners = {id(owner) for _, owner in run.register._entries.values()}
            assert run.coordinator is not None
            parts = [*_parts(run, owners), *_parts(run.coordinator, owners)]
    assert [path for path, one in parts if hasattr(one, "load_state_dict")] == []
    assert len(parts) > 5


def _parts(holder: Any, owners: set[int]) -> list[tuple[str, Any]]:
    names = [*getattr(type(holder), "__slots__", ()), *getattr(holder, "__dict__", {})]
    found = [(f"{type(holder).__name__}.{name}", getattr(holder, name)) for name in names]
    return [(path, one) for path, one in found if id(one) not in owners and _is_part(one)]


def _is_part(one: Any) -> bool:
    return type(one).__module__.startswith("rlvr") and not isinstance(one, StateRegister)


def test_every_exemption_is_still_there(work: Workspace) -> None:
    """A name that no longer exists would hide nothing today and something tomorrow."""
    with elsewhere(work.folder):
        work.save_recipe()
        with build(load_recipe("recipe.yaml")) as run:
            for path in EXEMPT:
                value: Any = run
                for name in path.split(".")[1:]:
                    value = getattr(value, name)
