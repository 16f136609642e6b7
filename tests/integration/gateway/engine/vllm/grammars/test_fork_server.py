"""The limits on a child of the checker process, and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.errors import Overloaded
from tests.integration.gateway.engine.vllm.grammars.checker import HEAVY, a_checker, check, children, gone, until


def test_a_hopeless_grammar_delays_no_other_and_is_killed_with_its_last_waiter_or_at_its_limit() -> None:
    async def run() -> None:
        async with a_checker(timeout_s=1.0) as (checker, processes):
            await check(checker, {"regex": "a"}, "a")
            left = asyncio.get_running_loop().create_task(check(checker, HEAVY, "a"))
            stays = asyncio.get_running_loop().create_task(check(checker, {"json": HEAVY["json"] + " "}, "a"))
            await until(lambda: len(children(processes[0].pid)) == 2)

            assert (await check(checker, {"regex": "b"}, "b")).backend == "xgrammar"
            assert not stays.done()

            left.cancel()
            await until(lambda: len(children(processes[0].pid)) == 1)
            try:
                result = await stays
                assert "takes longer than 1 s" in result.message
            except Overloaded:
                # The machine was so busy that the check got no CPU time.
                pass
            await until(lambda: not children(processes[0].pid))

    asyncio.run(run())


def test_memory_is_limited() -> None:
    async def run() -> None:
        many = {"json": {"enum": [f"{i:05}" + "y" * 80 for i in range(4000)]}}
        async with a_checker(max_memory_bytes=8 * 2**20) as (checker, _):
            result = await check(checker, many, "a")
            assert result.message == "takes more memory than 8 MiB (grammars.max_memory_bytes)"
            assert (await check(checker, {"regex": "a"}, "a")).backend == "xgrammar"

    asyncio.run(run())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
def test_all_processes_end_with_the_gateway_even_if_that_is_killed() -> None:
    async def run() -> None:
        async with a_checker() as (checker, processes):
            await check(checker, {"regex": "a"}, "a")
            task = asyncio.get_running_loop().create_task(check(checker, HEAVY, "a"))
            await until(lambda: len(children(processes[0].pid)) == 1)
            (child,) = children(processes[0].pid)
            # As the kernel does for a process that is killed.
            processes[0]._writer.transport.abort()
            await until(lambda: gone(child) and gone(processes[0].pid))
            task.cancel()

    asyncio.run(run())
