"""Recorded loads: Azure's LLM inference traces (CSV) and Mooncake's (JSONL), as arrivals with lengths."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from loadtest.scenario.arrivals import TraceReplay


class TraceError(Exception):
    """The file cannot be replayed; the message names the line."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is due. Lengths and blocks are present only where they were recorded."""

    at_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    # Mooncake: the blocks of 512 tokens of which the prompt consists; equal ids are equal text.
    blocks: tuple[int, ...] = ()


def read_trace(trace: TraceReplay, seed: int, duration_s: float) -> Iterator[Arrival]:
    """The arrivals of the first `duration_s` seconds of the trace, after its speed-up, in order. Raises TraceError."""
    rng = Random(f"{seed}/trace")
    rows = _read_azure(Path(trace.file)) if trace.format == "azure" else _read_mooncake(Path(trace.file))
    first: float | None = None
    last = 0.0
    for line, arrival in rows:
        first = arrival.at_s if first is None else first
        at_s = (arrival.at_s - first) / trace.speed
        if at_s < last:
            raise TraceError(f"{trace.file}, line {line}: the time goes back; sort the file by time.")
        last = at_s
        if at_s >= duration_s:
            return
        if trace.share == 1 or rng.random() < trace.share:
            yield Arrival(at_s, arrival.prompt_tokens, arrival.output_tokens, arrival.blocks)


def _read_azure(file: Path) -> Iterator[tuple[int, Arrival]]:
    wanted = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
    with _open(file) as lines:
        reader = csv.DictReader(lines)
        if missing := wanted - set(reader.fieldnames or ()):
            raise TraceError(f"{file}, line 1: no column {', '.join(sorted(missing))}; is this an Azure LLM trace?")
        for row in reader:
            try:
                at_s = datetime.fromisoformat(row["TIMESTAMP"].strip()).timestamp()
                yield reader.line_num, _arrival(at_s, row["ContextTokens"], row["GeneratedTokens"])
            except (ValueError, TypeError, AttributeError) as error:
                raise TraceError(f"{file}, line {reader.line_num}: {error}.") from None


def _read_mooncake(file: Path) -> Iterator[tuple[int, Arrival]]:
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row: dict[str, Any] = json.loads(line)
                blocks = tuple(int(block) for block in row.get("hash_ids", ()))
                yield number, _arrival(row["timestamp"] / 1000, row["input_length"], row["output_length"], blocks)
            except KeyError as error:
                raise TraceError(f"{file}, line {number}: no {error}; is this a Mooncake trace?") from None
            except (ValueError, TypeError, AttributeError) as error:
                raise TraceError(f"{file}, line {number}: {error}.") from None


def _arrival(at_s: float, prompt: object, output: object, blocks: tuple[int, ...] = ()) -> Arrival:
    # Some recorded answers are empty; the shortest that can be requested is one token.
    return Arrival(at_s, max(1, int(str(prompt))), max(1, int(str(output))), blocks)


def _open(file: Path) -> Any:
    try:
        return file.open(encoding="utf-8", newline="")
    except OSError as error:
        raise TraceError(f"The trace {file} cannot be read: {error.strerror}.") from None
