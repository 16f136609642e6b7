"""The real checker process with a small vocabulary, behind a queue."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from xgrammar import TokenizerInfo, VocabType

from gateway.clock import SystemClock
from gateway.engine.vllm.grammars.check_queue import CheckerConnection, CheckQueue, OnDocument
from gateway.engine.vllm.grammars.check_results import CheckResult, digest
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.grammars.process import CheckerProcess

HEAVY = {
    "json": json.dumps({"properties": {f"p{i}": {} for i in range(1000)}, "minProperties": 9, "maxProperties": 500})
}


def config(limits: GrammarLimits) -> dict[str, Any]:
    # Long tokens make the masks of ambiguous grammars slow.
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
async def a_checker(**changes: Any) -> AsyncIterator[tuple[CheckQueue, list[CheckerProcess]]]:
    processes: list[CheckerProcess] = []
    limits = GrammarLimits(**changes)

    async def start(on_document: OnDocument) -> CheckerConnection:
        processes.append(await CheckerProcess.start(config(limits), on_document))
        return processes[-1]

    async def vocabulary() -> dict[str, Any]:
        # Printable characters are enough for these tests.
        return {"tokens": {base64.b64encode(bytes([i])).decode(): [i] for i in range(32, 127)}, "eos": 256}

    checker = CheckQueue(limits, SystemClock(), start=start, vocabulary=vocabulary)
    try:
        yield checker, processes
    finally:
        await checker.close()


def check(checker: CheckQueue, constraint: dict[str, Any], client: str) -> Coroutine[Any, Any, CheckResult]:
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
