"""Sends new weights to the engine core: by file on a CPU, by CUDA IPC on a GPU; it reports their version back."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rlvr.engines.protocol import NO_VERSION, EngineError
from rlvr.engines.vllm.core import VllmCore
from rlvr.engines.vllm.pauses import Pauses
from rlvr.engines.weights import Manifest, checked, staged


def give_memory_back() -> None:
    """Memory of the GPU that this process's allocator keeps without using it, to whoever asks for it next."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class WeightUpdates:
    """Replaces the weights of one life of the engine core, and lets it sleep without them."""

    def __init__(self, core: VllmCore, pauses: Pauses, manifest: Manifest, dtype: torch.dtype) -> None:
        """``manifest`` is what the model folder holds, ``dtype`` the engine's."""
        self._core, self._pauses, self._manifest, self._dtype = core, pauses, manifest, dtype
        self._is_asleep = False
        self.version = NO_VERSION
        """What the engine core reported last."""

    async def sleep(self) -> None:
        """Weights, keys and values are forgotten until `load`, which brings all weights anyway. Written against vLLM's
        source, never run: sleeping needs a GPU."""
        self._is_asleep = True
        await self._core.call(self._core.running().sleep(level=2))

    async def load(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights by Hugging Face parameter names; requests in flight wait and go on with the new ones.

        An engine that sleeps gets its memory for weights before, and that for keys and values after them: both beside
        the copy that is handed over would be the moment with the highest peak of all.
        """
        llm = self._core.running()
        if self._is_asleep:
            give_memory_back()
            await self._core.call(llm.wake_up(tags=["weights"]))
        if self._core.on_cpu:
            with staged(self._manifest, tensors, self._dtype) as path:
                await self._replace(llm, {"path": path}, version)
        else:
            await self._replace_by_ipc(llm, checked(self._manifest, tensors), version)
        if self._is_asleep:
            give_memory_back()
            await self._core.call(llm.wake_up(tags=["kv_cache"]))
            self._is_asleep = False

    async def _replace(self, llm: Any, update: dict[str, Any], version: int) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._pauses.paused():
            self._core.broken = f"its update to version {version} was not completed"
            try:
                await self._core.call(llm.start_weight_update())
                await self._core.call(llm.update_weights(WeightTransferUpdateRequest(update_info=update)))
                await self._core.call(llm.finish_weight_update())
            except EngineError:
                raise
            except Exception as error:
                broken = self._core.broken = f"{self._core.broken}: {self._core.reason() or error}"
                raise EngineError(f"vLLM refused weights: {broken}; its log is {self._core.log_file}") from error
            self._core.broken = ""
            await self.set_version(version)
            # What is in flight holds blocks of the cache; other requests cannot meet them, their salt differs
            if not self._pauses.in_flight:
                await self._pauses.clear_cache()

    async def _replace_by_ipc(self, llm: Any, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand over CUDA tensors on the engine's own device by CUDA IPC. Written against vLLM's source, never run."""
        from torch.multiprocessing.reductions import reduce_tensor

        names, dtypes, shapes, handles, kept = [], [], [], [], []
        device = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        for name, tensor in tensors:
            weight = tensor.detach().to(device="cuda", dtype=self._dtype).contiguous()
            kept.append(weight)  # the engine reads this memory until the update has finished
            names.append(name)
            dtypes.append(str(weight.dtype).removeprefix("torch."))
            shapes.append(list(weight.shape))
            handles.append({device: reduce_tensor(weight)[1]})
        torch.cuda.synchronize()
        update = {"names": names, "dtype_names": dtypes, "shapes": shapes, "ipc_handles": handles}
        await self._replace(llm, {"pickled": pickle.dumps(update)}, version)
        del kept
        torch.cuda.ipc_collect()

    async def set_version(self, version: int) -> None:
        """Give the weights that are loaded a version. Raises `EngineError` if the core reports another one."""
        llm = self._core.running()
        await self._core.call(llm.update_weight_version(str(version)))
        echo = await self._core.call(llm.get_weight_version())
        if echo != str(version):
            raise EngineError(f"vLLM reports weight version {echo!r} after an update to {version}")
        self.version = version
