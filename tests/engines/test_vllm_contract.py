"""What rlvr takes from vLLM is there in the installed build, and what is missing from another is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from rlvr.engines.protocol import EngineError
from rlvr.engines.vllm import contract
from rlvr.engines.vllm.contract import Sources, check_installed, installed, main, missing


class Older(Sources):
    """The installed vLLM with a text changed in each of its files, as `changes` says."""

    def __init__(self, changes: dict[str, str]) -> None:
        super().__init__(installed().where)
        self.changes = changes

    def text(self, path: str) -> str | None:
        text = super().text(path)
        for old, new in self.changes.items():
            text = None if text is None else text.replace(old, new)
        return text


def test_the_installed_vllm_has_all_that_is_taken_from_it() -> None:
    assert missing(installed()) == []
    check_installed()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "said"),
    [
        ("weight_versions", "CompletionOutput.weight_versions"),  # 0.31 has none
        ("class WeightVersionSpan", "WeightVersionSpan in outputs.py"),
        ("def pause_generation", "AsyncLLM.pause_generation"),
        ("logprobs_mode", "AsyncEngineArgs.logprobs_mode"),
        ("ir_op_priority", "AsyncEngineArgs.ir_op_priority"),  # on a CPU alone
        ("max_num_batched_tokens", "AsyncEngineArgs.max_num_batched_tokens"),  # on a GPU alone
        ("logprob_token_ids", "SamplingParams.logprob_token_ids"),
        ("/shutdown_weight_transfer_engine", "the verb /shutdown_weight_transfer_engine"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "the variable VLLM_WORKER_MULTIPROC_METHOD"),
        ("initialize_layerwise_reload", "model_executor/model_loader/reload/__init__.py: initialize_layerwise_reload"),
    ],
)
def test_what_another_vllm_lacks_is_named(old: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Older({old: "another_name"} if not old.startswith(("class", "def")) else {old: f"{old}_2"})
    assert said in missing(older)
    monkeypatch.setattr(contract, "installed", lambda: older)
    check_installed.cache_clear()
    with pytest.raises(EngineError, match=r"lacks what rlvr takes from it: .*pip install 'vllm>=0\.32,<0\.33'"):
        check_installed()


def test_a_wheel_is_read_without_being_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "vllm-0.32.0-py3-none-any.whl"
    where = installed().where
    files = [where / path for path in contract.NAMES] + [where / name for name in ("engine/arg_utils.py", "envs.py")]
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in {*files, *(where / "entrypoints").rglob("*.py")}:
            packed.write(file, f"vllm/{file.relative_to(where).as_posix()}")
    assert main([str(wheel)]) == 0
    assert "has all that rlvr takes from it" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    assert main([str(tmp_path / "empty.whl")]) == 1
    assert "lacks the file v1/engine/async_llm.py" in capsys.readouterr().out
