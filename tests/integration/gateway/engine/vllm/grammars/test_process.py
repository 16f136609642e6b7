from __future__ import annotations

import asyncio
import os
import signal

from tests.integration.gateway.engine.vllm.grammars.checker import a_checker, check, gone, until


def test_a_process_that_is_killed_is_replaced() -> None:
    async def run() -> None:
        async with a_checker() as (checker, processes):
            await check(checker, {"regex": "a"}, "a")
            os.kill(processes[0].pid, signal.SIGKILL)
            await until(lambda: gone(processes[0].pid))
            await asyncio.sleep(0.05)

            assert (await check(checker, {"regex": "b"}, "a")).backend == "xgrammar"
            assert len(processes) == 2

    asyncio.run(run())
