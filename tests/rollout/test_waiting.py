"""A learner that starves and an engine that is blocked say so, with names, and nothing hangs for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlvr.records import Completion, Request
from rlvr.rollout.waiting import Stalled
from tests.rollout.scripted import World, make_renderer

Warnings = list[tuple[str, str]]


@pytest.fixture
def world(tiny_tied: Path) -> Iterator[World]:
    """An asynchronous run with a stall_timeout of two seconds."""
    schedule = {"type": "asynchronous", "oversample": 2.0, "max_staleness": 1}
    world = World(0, make_renderer(tiny_tied), schedule, refill=False, longest=5, stall_timeout=2.0)
    yield world
    world.close()


def listen(world: World) -> Warnings:
    """What the run warns of."""
    found: Warnings = []
    world.rollouts.scheduler._waiting._warn = lambda name, message: found.append((name, message))
    return found


@pytest.mark.slow
def test_an_engine_that_gives_nothing_back_ends_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told each tenth of stall_timeout, and at its end raised, with the groups that wait and for how long."""
    warnings, real = listen(world), world.engine.generate

    async def silent(request: Request) -> Completion:
        if request.id.startswith("p0/0/1"):
            await asyncio.sleep(3600)
        return await real(request)

    monkeypatch.setattr(world.engine, "generate", silent)
    world.train()  # the silent group is passed over: there is time
    with pytest.raises(Stalled) as raised:
        world.train()
    for part in (
        "no completion has ended for 2 s",
        "1 requests are in the engine",
        "p0 (visit 0, ",
        "rollout.stall_timeout = 2",
    ):
        assert part in str(raised.value)
    assert len(warnings) >= 3
    assert {name for name, _ in warnings} == {"rollouts_stalled"}


@pytest.mark.slow
def test_slow_is_not_stalled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions that end now and then, each within stall_timeout, are waited for beyond it."""
    real = world.engine.generate
    ends: list[float] = []

    async def slow(request: Request) -> Completion:
        turn = len(ends)
        ends.append(0.0)
        await asyncio.sleep(0.8 * (1 + turn))
        return await real(request)

    monkeypatch.setattr(world.engine, "generate", slow)
    started = time.monotonic()
    world.train()
    assert time.monotonic() - started > 2.0


def test_an_engine_that_waits_for_the_learner_says_so(world: World) -> None:
    """While the learner computes, all completions that the schedule allows are finished."""
    warnings = listen(world)
    world.train()
    deadline = time.monotonic() + 30
    while len(warnings) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {name for name, _ in warnings} == {"rollouts_blocked"}
    count: Any = len(world.rollouts.scheduler.buffer.pending)
    assert f"{count} finished groups wait for the learner" in warnings[-1][1]
    assert "(visit 0, finished, " in warnings[-1][1]
    world.train()
    world.check()


def test_an_error_of_a_group_ends_the_step_and_all_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that happened while the learner computed: the next step raises it."""
    world.train()

    async def broken(request: Request) -> Completion:
        raise RuntimeError("made up")

    monkeypatch.setattr(world.engine, "generate", broken)

    def go_on() -> None:
        for _ in range(3):
            world.train()

    with pytest.raises(RuntimeError, match="made up"):
        go_on()
    assert [one.task for one in world.rollouts.scheduler.buffer.pending if one.task is not None] == []
