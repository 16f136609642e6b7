"""The checker process itself, with a small vocabulary: what it finds, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from xgrammar import TokenizerInfo, VocabType

from gateway.clock import SystemClock
from gateway.engine.vllm.grammars.check_queue import Checker, Link, OnDocument
from gateway.engine.vllm.grammars.check_results import Verdict, digest
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.grammars.process import CheckerProcess
from gateway.errors import Overloaded

HEAVY = {
    "json": json.dumps({"properties": {f"p{i}": {} for i in range(1000)}, "minProperties": 9, "maxProperties": 500})
}
AMBIGUOUS = 'root ::= a a a a a a\na ::= "" | a b | b a\nb ::= [a-z ]*'
GOOD = {
    "json": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "regex": "[ab]+",
    "choice": ["yes", "no"],
    "grammar": 'root ::= "a" root | "b"',
    "structural_tag": json.dumps(
        {"structures": [{"begin": "<a>", "schema": {"type": "object"}, "end": "</a>"}], "triggers": ["<a>"]}
    ),
}
BAD = {
    "json": {"type": "nonsense"},
    "regex": "(((",
    "grammar": "root ::= root",
    "structural_tag": json.dumps({"structures": [{"begin": "<a>"}], "triggers": []}),
}


def config(limits: GrammarLimits) -> dict[str, Any]:
    # Long tokens are what makes masks of ambiguous grammars slow.
    tokens: list[str | bytes] = [bytes([i]) for i in range(256)]
    tokens += [b"</s>", *(bytes([letter]) * length for letter in b"abcdefgh" for length in range(8, 64))]
    info = TokenizerInfo(tokens, vocab_type=VocabType.RAW, stop_token_ids=[256])
    settings = {"backend": "auto", "disable_any_whitespace": False, "disable_additional_properties": False}
    return {
        "settings": settings,
        "tokenizer": info.serialize_json(),
        "timeout_s": limits.timeout_s,
        "wall_s": limits.wall_s,
        "max_memory_bytes": limits.max_memory_bytes,
    }


@asynccontextmanager
async def a_checker(**changes: Any) -> AsyncIterator[tuple[Checker, list[CheckerProcess]]]:
    processes: list[CheckerProcess] = []
    limits = GrammarLimits(**changes)

    async def start(on_document: OnDocument) -> Link:
        processes.append(await CheckerProcess.start(config(limits), on_document))
        return processes[-1]

    async def vocabulary() -> dict[str, Any]:
        # Printable ones are enough for what is tried here.
        return {"tokens": {base64.b64encode(bytes([i])).decode(): [i] for i in range(32, 127)}, "eos": 256}

    checker = Checker(limits, SystemClock(), start=start, vocabulary=vocabulary)
    try:
        yield checker, processes
    finally:
        await checker.close()


def check(checker: Checker, constraint: dict[str, Any], client: str) -> Coroutine[Any, Any, Verdict]:
    return checker.check(constraint, client, digest(constraint))


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


async def until(condition: Any, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_each_kind_is_compiled_or_refused_with_a_reason() -> None:
    async def run() -> None:
        async with a_checker() as (checker, processes):
            for name, value in GOOD.items():
                assert (await check(checker, {name: value}, "a")).backend == "xgrammar", name
            for name, value in BAD.items():
                verdict = await check(checker, {name: value}, "a")
                assert verdict.backend is None, name
                assert "/project/" not in verdict.message
                assert "Traceback" not in verdict.message
            # Ambiguous: each mask takes longer than the last one.
            verdict = await check(checker, {"grammar": AMBIGUOUS}, "a")
            assert "too long" in verdict.message or "longer than" in verdict.message
            # What xgrammar does not know goes to the others, as in vLLM.
            assert (await check(checker, {"regex": r"\p{L}+"}, "a")).backend == "guidance"
            assert (await check(checker, {"json": {"type": "integer", "multipleOf": 3}}, "a")).backend == "guidance"
            pattern = {
                "type": "object",
                "patternProperties": {"^a": {"type": "string"}},
                "properties": {"b": {"type": "integer"}},
            }
            assert (await check(checker, {"json": pattern}, "a")).backend == "outlines"
            # It stays as small as it is said to be, and has no thread that a fork would lose.
            status = Path(f"/proc/{processes[0].pid}/status").read_text(encoding="ascii")
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            assert int(fields["VmRSS"].split()[0]) < 200_000
            assert fields["Threads"].strip() == "1"

    asyncio.run(run())


def test_a_hopeless_grammar_delays_nobody_and_is_killed_when_its_client_leaves_or_its_time_is_up() -> None:
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
                verdict = await stays
                assert "takes longer than 1 s" in verdict.message
            except Overloaded:
                # A machine so busy that it got no time at all.
                pass
            await until(lambda: not children(processes[0].pid))

    asyncio.run(run())


def test_memory_is_limited() -> None:
    async def run() -> None:
        many = {"json": {"enum": [f"{i:05}" + "y" * 80 for i in range(4000)]}}
        async with a_checker(max_memory_bytes=8 * 2**20) as (checker, _):
            verdict = await check(checker, many, "a")
            assert verdict.message == "takes more memory than 8 MiB (grammars.max_memory_bytes)"
            assert (await check(checker, {"regex": "a"}, "a")).backend == "xgrammar"

    asyncio.run(run())


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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
def test_everything_ends_with_the_gateway_even_if_that_is_killed() -> None:
    async def run() -> None:
        async with a_checker() as (checker, processes):
            await check(checker, {"regex": "a"}, "a")
            task = asyncio.get_running_loop().create_task(check(checker, HEAVY, "a"))
            await until(lambda: len(children(processes[0].pid)) == 1)
            (job,) = children(processes[0].pid)
            # What the kernel does for a process that is killed.
            processes[0]._writer.transport.abort()
            await until(lambda: gone(job) and gone(processes[0].pid))
            task.cancel()

    asyncio.run(run())
