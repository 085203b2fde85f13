"""An engine's life in a process of its own: Ctrl-C, the engine core killed, a new start, then this process killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from rlvr.engines.protocol import EngineError
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.engines.vllm.settings import VllmSettings
from rlvr.records import Request, Sampling


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def core_of(engine: VllmEngine) -> int:
    return int(engine._life.core.llm.engine_core.resources.engine_manager.processes[0].pid)


def request(name: str, length: int) -> Request:
    return Request(id=name, prompt_ids=(5, 6, 7), sampling=Sampling(max_new_tokens=length), seed=1)


async def main(folder: str, log: str) -> None:
    engine = VllmEngine(VllmSettings(model=folder, dtype="float32", kv_cache_gib=0.05, threads=1), log_file=log)
    before = dict(os.environ)
    await engine.start()
    tell(core=core_of(engine), version=engine.version, same_environment=before == dict(os.environ))

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGINT)
    await asyncio.sleep(0.5)
    tell(after_interrupt=len((await engine.generate(request("a", 8))).ids))

    tasks = [asyncio.create_task(engine.generate(request(f"b{i}", 200))) for i in range(3)]
    await asyncio.sleep(0.05)
    os.kill(core_of(engine), signal.SIGKILL)
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    tell(errors=[f"{type(error).__name__}: {error}" for error in errors])
    try:
        await engine.logprobs([[5, 6]])
    except EngineError as error:
        tell(afterwards=str(error))
    await engine.close()
    await engine.close()

    await engine.start()
    tell(core=core_of(engine), after_restart=len((await engine.generate(request("c", 8))).ids))
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
