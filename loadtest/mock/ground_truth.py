"""The ground truth with which clients' numbers are compared: what happened to each request, and how late the mock was.

One JSON object a line: a `TrueRecord` each, and a last line `{"mock": ...}` with the mock's own lateness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from loadtest.measure.histogram import Histogram
from loadtest.measure.result import LatencyStats

ON_TIME_MS = 1.0
"""Half of the precision demanded of load generators, at the p99, would be better; a shared CPU does not allow it."""


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
    """The number of tokens in each of them."""
    ended_ns: int | None = None
    end: str = "running"
    """`complete`, `cut`, `left` (by its client) or `refused`; `running` if the mock ended first."""


class Lateness:
    """The delay between due and actual times. `starts` are those of the first event after each wake-up; behind it
    others may have been due in the same instant, which one core can only fire one after the other (`sends`)."""

    def __init__(self) -> None:
        self.starts = Histogram()
        self.sends = Histogram()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the verdict whether the mock was on time."""
        starts, sends = LatencyStats.from_histogram(self.starts), LatencyStats.from_histogram(self.sends)
        return {
            "on_time": starts.p99 is None or starts.p99 <= ON_TIME_MS,
            "start_lateness_ms": starts.model_dump(exclude={"histogram"}),
            "send_lateness_ms": sends.model_dump(exclude={"histogram"}),
        }


@dataclass(frozen=True, slots=True)
class GroundTruth:
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
        """The inverse of `write`. Raises OSError, or ValueError if the file is truncated."""
        *lines, last = [orjson.loads(line) for line in path.read_bytes().splitlines()] or [{}]
        if "mock" not in last:
            raise ValueError(f"{path}: the last line is not the mock's own; end the mock with SIGTERM before reading")
        return cls([TrueRecord(**line) for line in lines], last["mock"])
