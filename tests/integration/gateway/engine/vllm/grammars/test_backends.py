"""The backends in the checker process: which grammars they compile, and with which message they refuse others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.integration.gateway.engine.vllm.grammars.checker import a_checker, check

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


def test_each_kind_is_compiled_or_refused_with_a_reason() -> None:
    async def run() -> None:
        async with a_checker() as (checker, processes):
            for name, value in GOOD.items():
                assert (await check(checker, {name: value}, "a")).backend == "xgrammar", name
            for name, value in BAD.items():
                result = await check(checker, {name: value}, "a")
                assert result.backend is None, name
                assert "/project/" not in result.message
                assert "Traceback" not in result.message
            # Ambiguous: each mask takes longer than the last one.
            result = await check(checker, {"grammar": AMBIGUOUS}, "a")
            assert "too long" in result.message or "longer than" in result.message
            # Grammars that xgrammar does not support go to the other backends, as in vLLM.
            assert (await check(checker, {"regex": r"\p{L}+"}, "a")).backend == "guidance"
            assert (await check(checker, {"json": {"type": "integer", "multipleOf": 3}}, "a")).backend == "guidance"
            pattern = {
                "type": "object",
                "patternProperties": {"^a": {"type": "string"}},
                "properties": {"b": {"type": "integer"}},
            }
            assert (await check(checker, {"json": pattern}, "a")).backend == "outlines"
            # The process stays small, and has no thread that a fork would lose.
            status = Path(f"/proc/{processes[0].pid}/status").read_text(encoding="ascii")
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            assert int(fields["VmRSS"].split()[0]) < 200_000
            assert fields["Threads"].strip() == "1"

    asyncio.run(run())
