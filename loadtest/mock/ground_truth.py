"""What happened, request by request, and how late the mock was: the document that clients' numbers are held against.

One JSON object a line: a `Record` each, and a last line `{"mock": ...}` with the mock's own lateness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from loadtest.measure.histogram import Histogram
from loadtest.measure.result import LatencyStats

__all__ = ["ON_TIME_MS", "GroundTruth", "Lateness", "TrueRecord"]

ON_TIME_MS = 1.0
"""Half of the precision that load generators are held to, at the p99, would be better; a shared CPU gives no more."""


@dataclass(slots=True)
class TrueRecord:
    """One request. Times are `perf_counter_ns`."""

    id: str
    request_id: str
    stream: bool
    fault: str | None
    arrived_ns: int
    """When its last byte was read."""
    status: int = 200
    sent_ns: list[int] = field(default_factory=list)
    """When each event that carried tokens was handed to the kernel."""
    tokens: list[int] = field(default_factory=list)
    """How many tokens each of them carried."""
    ended_ns: int | None = None
    end: str = "running"
    """`complete`, `cut`, `left` (by its client) or `refused`; `running` if the mock ended first."""


class Lateness:
    """How late things were done after they were due. `starts` are those that a wake-up began with; behind them others
    may have been due in the same instant, which one core can only do one after the other (`sends`)."""

    def __init__(self) -> None:
        self.starts = Histogram()
        self.sends = Histogram()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the answer to the question whether the mock was on time."""
        starts, sends = LatencyStats.from_histogram(self.starts), LatencyStats.from_histogram(self.sends)
        return {
            "on_time": starts.p99 is None or starts.p99 <= ON_TIME_MS,
            "start_lateness_ms": starts.model_dump(exclude={"histogram"}),
            "send_lateness_ms": sends.model_dump(exclude={"histogram"}),
        }


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What was written."""

    records: list[TrueRecord]
    mock: dict[str, Any]

    @property
    def is_on_time(self) -> bool:
        return bool(self.mock["on_time"])

    @staticmethod
    def write(path: Path, records: Iterable[TrueRecord], mock: dict[str, Any]) -> None:
        with path.open("wb") as out:
            for record in records:
                out.write(orjson.dumps(asdict(record)) + b"\n")
            out.write(orjson.dumps({"mock": mock}) + b"\n")

    @classmethod
    def read(cls, path: Path) -> GroundTruth:
        """What `write` wrote. Raises OSError, or ValueError if it is cut short."""
        *lines, last = [orjson.loads(line) for line in path.read_bytes().splitlines()] or [{}]
        if "mock" not in last:
            raise ValueError(f"{path}: the last line is not the mock's own; end the mock with SIGTERM before reading")
        return cls([TrueRecord(**line) for line in lines], last["mock"])
