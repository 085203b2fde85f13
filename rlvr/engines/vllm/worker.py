"""The part of rlvr that runs inside vLLM's processes.

vLLM imports this module in each worker process before it builds the worker (`worker_extension_cls`); that import is
the hook, so no entry point has to be installed:

| part            | does                                                                                      |
|-----------------|-------------------------------------------------------------------------------------------|
| `FileTransfer`  | vLLM's four weight-transfer verbs through a safetensors file: CPU engines                 |
| `CudaTransfer`  | the same for GPUs: tensors on the engine's own device, by CUDA IPC                        |
| `InlineExecutor`| the worker inside the engine's own process: nothing to spin on between the two            |
| `_guard`        | ends this process, and the one above it, when the process that started them ends          |
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from rlvr.engines.vllm.settings import CUDA_BACKEND, FILE_BACKEND, PARENT_VARIABLE


@dataclass
class FileInit(WeightTransferInitInfo):
    """Asks whether a file can be read, before an update begins that could not be taken back."""

    path: str


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """One complete set of weights."""

    path: str
    """A safetensors file with Hugging Face names, in the engine's dtype; read before the call returns."""


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):
    """Replaces all weights by those of a safetensors file, in place."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Fail if this process cannot read the file."""
        with safe_open(init_info.path, framework="pt") as stored:
            stored.keys()

    def start_weight_update(self) -> None:
        """Bring the layers back from packed to checkpoint format."""
        self._expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load the file; a parameter of the model that it does not fill is an error."""
        with safe_open(update_info.path, framework="pt") as stored:
            load: Any = self.model.load_weights  # each of vLLM's models has it, torch.nn.Module does not
            loaded = load((name, stored.get_tensor(name)) for name in stored.keys())  # noqa: SIM118 (not a mapping)
        missing = self._expected - loaded if loaded is not None else set()
        if missing:
            raise RuntimeError(f"the weight file leaves parameters unset: {sorted(missing)}")

    def finish_weight_update(self) -> None:
        """Pack the layers again, a tied head included.

        A tied `lm_head` has no weight of its own in the file, so layerwise reloading never packs it again and would go
        on with the packed copy of the first weights.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_text_config.tie_word_embeddings:
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """No connection to close."""


class CudaTransfer(IPCWeightTransferEngine):
    """vLLM's CUDA IPC engine, its handles pickled by the process that started this one. Never run: no GPU here.

    vLLM carries such handles only with VLLM_ALLOW_INSECURE_SERIALIZATION, which would open every message to pickle.
    """

    def parse_update_info(self, update_dict: dict[str, Any]) -> IPCWeightTransferUpdateInfo:
        """The update that `VllmEngine` pickled."""
        return IPCWeightTransferUpdateInfo(**pickle.loads(update_dict["pickled"]))


class InlineExecutor(UniProcExecutor):
    """One worker in the engine core's process, for CPUs.

    vLLM's choice on a CPU is a worker process of its own, and then core and worker wait for each other in spinning
    loops on the same few cores that compute. Its reason, that OpenMP must be set up before the process starts, holds
    here as well: `VllmEngine` sets it up before the engine core starts.
    """


class WorkerExtension:
    """Names this module to vLLM; what it does, it does at import."""


def _guard(parent: int) -> None:
    """Kill this process, and the one that started it, as soon as that one or `parent` is gone.

    In an engine of this run's process the two are one; under `vllm serve` the API server stands between them. A thread
    blocks on their pidfds, so it costs nothing; PR_SET_PDEATHSIG would fire already when the parent's starting thread
    ends.
    """
    starter = os.getppid()
    watched = {parent, starter} - {1}

    def wait() -> None:
        try:
            select.select([os.pidfd_open(process) for process in watched], [], [])
        except ProcessLookupError:
            pass
        except (AttributeError, OSError):  # no Linux, or a container that forbids it
            while all(map(_exists, watched)):
                time.sleep(1)
        if starter not in (parent, 1) and os.getppid() == starter:
            os.kill(starter, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="rlvr-guard", daemon=True).start()


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _install(registry: Any = WeightTransferEngineFactory) -> None:
    if current_platform.is_cpu():
        import rlvr.engines.vllm.cpu_kernels  # noqa: F401 (its import is what it does)
    registry.register_engine(FILE_BACKEND, FileTransfer)
    registry.register_engine(CUDA_BACKEND, CudaTransfer)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None and int(parent) != os.getpid():
        _guard(int(parent))


_install()
