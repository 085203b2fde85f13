"""Fixtures that several test packages share: tiny models, engines that run once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

SHAPES_CHECKED = ("rlvr.learn.losses",)
"""Modules whose annotated shapes and types are checked at every call while tests run."""
install_import_hook(SHAPES_CHECKED, "beartype.beartype")  # before rlvr is imported for the first time

from rlvr.engines.vllm.engine import VllmEngine  # noqa: E402
from rlvr.engines.vllm.settings import VllmSettings  # noqa: E402
from rlvr.rollout.background import Background  # noqa: E402
from tests.engine_sides import Learner  # noqa: E402
from tests.helpers import make_tiny_model  # noqa: E402
from tests.runs import Workspace, nothing_left_behind  # noqa: E402

SLOW_FIXTURES = {"vllm_tied", "vllm_untied", "vllm_endpoint", "answering", "browser"}
"""Fixtures that start a real engine or a browser, or fine-tune a model: whatever asks for one is a slow test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a slow fixture, so that nobody has to remember to."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama whose head is its embedding."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tied", tied=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2 (biases in its attention) with a head of its own."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "untied", tied=False, qwen=True)


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    """The event loop that all engines of the session live in."""
    background = Background()
    yield background
    background.close()


@pytest.fixture(scope="session")
def vllm_tied(
    tiny_tied: Path, background: Background, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmEngine]:
    """Real vLLM on the tied model in float32."""
    yield from _engine(tiny_tied, background, tmp_path_factory)


@pytest.fixture(scope="session")
def vllm_untied(
    tiny_untied: Path, background: Background, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmEngine]:
    """Real vLLM on the untied model in float32."""
    yield from _engine(tiny_untied, background, tmp_path_factory)


def _engine(model: Path, background: Background, tmp: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    log = tmp.mktemp("vllm") / "vllm.log"
    settings = VllmSettings(model=str(model), dtype="float32", max_num_seqs=8, kv_cache_gib=0.05, threads=1)
    engine = VllmEngine(settings, stats=True, log_file=log)
    background.wait(engine.start())
    yield engine
    background.wait(engine.close())


@pytest.fixture
def workspace(tmp_path: Path, tiny_tied: Path) -> Workspace:
    """A fresh directory with a tied model, from which runs are started."""
    return Workspace(tmp_path / "work", tiny_tied)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """However a test ends, the graders and threads of its runs have ended with it."""
    with nothing_left_behind():
        yield


@pytest.fixture(scope="module")
def tied_learner(tiny_tied: Path) -> Learner:
    return Learner(tiny_tied)


@pytest.fixture(scope="module")
def untied_learner(tiny_untied: Path) -> Learner:
    return Learner(tiny_untied)
