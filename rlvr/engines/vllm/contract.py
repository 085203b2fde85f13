"""Every name, field, verb, flag and variable that rlvr takes from vLLM, and whether a vLLM has them.

    python -m rlvr.engines.vllm.contract             # the vLLM that is installed
    python -m rlvr.engines.vllm.contract FILE.whl    # any wheel, a GPU build too, without installing it

vLLM's sources are read, nothing of it is imported: half a second, once, before the first engine starts. What a run
would otherwise meet as an AttributeError at its first completion is named before.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rlvr.config.speculative import NgramDrafts
from rlvr.engines.protocol import EngineError
from rlvr.engines.vllm.settings import (
    VllmSettings,
    prompt_logprobs_parameters,
    sampling_parameters,
    speculative_config,
)
from rlvr.records import Request, Sampling

NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "__init__.py": {"": ("AsyncEngineArgs", "SamplingParams")},
    "v1/engine/async_llm.py": {
        "AsyncLLM": (
            "from_engine_args", "add_request", "abort", "pause_generation", "resume_generation", "reset_prefix_cache",
            "sleep", "wake_up", "start_weight_update", "update_weights", "finish_weight_update",
            "update_weight_version", "get_weight_version", "get_supported_tasks", "get_tokenizer", "shutdown",
            "errored", "output_handler", "output_processor", "model_config",
        ),
    },
    "v1/engine/output_processor.py": {"OutputProcessor": ("propagate_error",)},
    "v1/engine/exceptions.py": {"EngineDeadError": (), "EngineGenerateError": ()},
    "v1/metrics/loggers.py": {"StatLoggerBase": ("record", "log_engine_initialized")},
    "v1/executor/uniproc_executor.py": {"UniProcExecutor": ()},
    "exceptions.py": {"VLLMClientError": ()},
    "inputs/engine.py": {"tokens_input": ()},
    "outputs.py": {
        "CompletionOutput": ("token_ids", "logprobs", "weight_versions", "finish_reason", "stop_reason"),
        "WeightVersionSpan": ("version", "start", "end"),
        "RequestOutput": ("outputs", "prompt_logprobs"),
    },
    "sampling_params.py": {
        "RequestOutputKind": ("FINAL_ONLY",),
        "RepetitionDetectionParams": ("max_pattern_size", "min_pattern_size", "min_count"),
    },
    "distributed/weight_transfer/base.py": {
        "WeightTransferEngine": ("init_transfer_engine", "start_weight_update", "receive_weights",
                                 "finish_weight_update", "parse_update_info", "shutdown"),
        "WeightTransferInitInfo": (), "WeightTransferUpdateInfo": (),
        "WeightTransferUpdateRequest": ("update_info",), "ParamMeta": ("name", "dtype", "shape"),
        "WeightSource": ("metadata",), "TrainerInitInfo": ("rank",),
        "TrainerWeightTransferEngine": ("source", "client"),
    },
    "distributed/weight_transfer/factory.py": {"WeightTransferEngineFactory": ("register_engine",)},
    "distributed/weight_transfer/ipc_engine.py": {
        "IPCWeightTransferEngine": (),
        "IPCWeightTransferUpdateInfo": ("names", "dtype_names", "shapes", "ipc_handles"),
    },
    "distributed/weight_transfer/nccl_engine.py": {
        "NCCLTrainerInitInfo": ("master_address", "master_port", "world_size"),
        "NCCLTrainerWeightTransferEngine": ("trainer_init", "send_weights", "model_update_group"),
    },
    "model_executor/model_loader/reload/__init__.py": {
        "": ("initialize_layerwise_reload", "finalize_layerwise_reload"),
    },
    "model_executor/layers/vocab_parallel_embedding.py": {"ParallelLMHead": ()},
    "platforms/interface.py": {"Platform": ("is_cpu",)},
    "entrypoints/launchers/api_server/entry.py": {},
    "entrypoints/launchers/cli_args.py": {
        "FrontendArgs": ("enable_scale_out", "enable_server_load_tracking", "middleware"),
    },
}  # fmt: skip
"""File of vLLM -> class or function in it ("" for what the file itself exports) -> members."""

ROUTES = (
    "/inference/v1/generate", "/abort_requests", "/pause", "/resume", "/reset_prefix_cache", "/load", "/server_info",
    "/weight_info", "/get_world_size", "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine",
    "/start_weight_update", "/update_weights", "/finish_weight_update",
)  # fmt: skip
"""Verbs of `vllm serve`."""

VARIABLES = ("VLLM_LOGGING_STREAM", "VLLM_SERVER_DEV_MODE")
"""Of the environment, beside those of `VllmSettings.environment`."""


class Sources:
    """The Python files of a vLLM: an installed package's folder, or a wheel."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._wheel = zipfile.ZipFile(where) if where.is_file() else None

    def paths(self, under: str) -> list[str]:
        """Python files below a folder, relative to the package."""
        if self._wheel is None:
            return [one.relative_to(self.where).as_posix() for one in (self.where / under).rglob("*.py")]
        inside = (name.removeprefix("vllm/") for name in self._wheel.namelist() if name.startswith(f"vllm/{under}/"))
        return [name for name in inside if name.endswith(".py")]

    def text(self, path: str) -> str | None:
        """A file's text; None if there is no such file."""
        try:
            if self._wheel is not None:
                return self._wheel.read(f"vllm/{path}").decode()
            return (self.where / path).read_text(encoding="utf-8")
        except (KeyError, FileNotFoundError):
            return None


def installed() -> Sources:
    """The vLLM that would be imported. Raises `ImportError` if there is none."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'vllm'")
    return Sources(Path(found.submodule_search_locations[0]))


def missing(sources: Sources) -> list[str]:
    """What rlvr needs and this vLLM does not have, in words."""
    wanted = {path: {name: set(members) for name, members in rows.items()} for path, rows in NAMES.items()}
    arguments = set().union(*(_arguments(on_cpu=on_cpu) for on_cpu in (True, False)))
    wanted["engine/arg_utils.py"] = {"AsyncEngineArgs": arguments | {"scheduling_policy", "device_ids"}}
    wanted["sampling_params.py"]["SamplingParams"] = _sampling() | {"flat_logprobs", "output_kind"}
    absent = []
    for path, rows in wanted.items():
        if (text := sources.text(path)) is None:
            absent.append(f"the file {path}")
            continue
        known = _names(text)
        for name, members in rows.items():
            if name not in known:
                absent.append(f"{name} in {path}")
            else:
                absent += [f"{name or path}{'.' if name else ': '}{one}" for one in sorted(members - known[name])]
    served = "\n".join(sources.text(path) or "" for path in sources.paths("entrypoints"))
    absent += [f"the verb {route}" for route in ROUTES if f'"{route}"' not in served]
    variables = sources.text("envs.py") or ""
    own = {name for name in VllmSettings(model="").environment(0) if name.startswith("VLLM_")}
    return absent + [f"the variable {name}" for name in sorted({*own, *VARIABLES}) if name not in variables]


@cache
def check_installed() -> None:
    """Raise `EngineError` if the installed vLLM lacks something, by name; `ImportError` if there is none."""
    sources = installed()
    if absent := missing(sources):
        wanted = "vllm>=0.32,<0.33"
        raise EngineError(
            f"the vLLM in {sources.where} lacks what rlvr takes from it: {'; '.join(absent)}; pip install '{wanted}'"
        )


def _arguments(*, on_cpu: bool) -> set[str]:
    drafts = speculative_config(NgramDrafts(type="ngram"))
    return set(VllmSettings(model="", speculative=drafts).arguments(on_cpu=on_cpu, gpu_transfer=""))


def _sampling() -> set[str]:
    request = Request(id="", prompt_ids=(1,), sampling=Sampling(max_new_tokens=1), seed=0)
    return set(sampling_parameters(request)) | set(prompt_logprobs_parameters(1))


@cache
def _names(text: str) -> dict[str, set[str]]:
    """Of a module's source: each class with its members, those of its bases in the module included, each function, and
    under "" all that can be imported from it."""
    tree = ast.parse(text)
    found: dict[str, set[str]] = {"": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found[""] |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if isinstance(node, ast.Dict):  # a package that imports on demand lists its names in one
            keys = (key.value for key in node.keys if isinstance(key, ast.Constant))
            found[""] |= {key for key in keys if isinstance(key, str)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = (base.id for base in node.bases if isinstance(base, ast.Name))
            found[node.name] = _members(node).union(*(found.get(base, set()) for base in bases))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = set()
    found[""] |= found.keys()
    return found


def _members(node: ast.ClassDef) -> set[str]:
    """Methods, fields, and attributes that a method gives itself."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(inner.name)
        targets = inner.targets if isinstance(inner, ast.Assign) else []
        if isinstance(inner, ast.AnnAssign):
            targets = [inner.target]
        for target in targets:
            if isinstance(target, ast.Name):
                found.add(target.id)
            elif isinstance(target, ast.Attribute):
                found.add(target.attr)
    return found


def main(arguments: list[str]) -> int:
    """0 if nothing is missing, 1 otherwise."""
    sources = Sources(Path(arguments[0])) if arguments else installed()
    absent = missing(sources)
    for one in absent:
        print(f"vLLM in {sources.where} lacks {one}")
    if not absent:
        print(f"vLLM in {sources.where} has all that rlvr takes from it")
    return int(bool(absent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
