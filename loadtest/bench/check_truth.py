"""Compares a run's result with the mock's ground truth: the same percentiles of the same requests, from the server's
times.

The two processes have one clock, but the lines of the run count from its start. That moment follows from causality: no
request arrived before it was sent and no token was read before it left, so the start lies between two bounds some tens
of microseconds apart. If the bounds cross, a time of the client is wrong.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from loadtest.measure.result import LatencyStats, Result
from loadtest.mock.ground_truth import GroundTruth, TrueRecord

# Lines hold whole microseconds, rounded down.
ROUNDED_US = 2.0
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# The promised accuracy.
TOLERANCE, TOLERANCE_MS = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class CheckedFigure:
    """One number of the report and its expected value, in milliseconds."""

    metric: str
    name: str
    reported: float
    expected: float
    allowed: float

    @property
    def difference(self) -> float:
        return self.reported - self.expected

    @property
    def is_met(self) -> bool:
        return abs(self.difference) <= self.allowed


@dataclass(frozen=True, slots=True)
class MatchedRequest:
    """A request as the client recorded it, and as it was."""

    line: dict[str, Any]
    record: TrueRecord

    def true_ttft_ms(self, since: str, began_us: float) -> float:
        """TTFT by the server's times; intended and sending times are the client's own."""
        first_us = self.record.sent_ns[0] / 1000
        match since:
            case "from_arrival":
                since_us = self.record.arrived_ns / 1000
            case "from_sent":
                since_us = began_us + self.line["sent_us"]
            case _:
                since_us = began_us + self.line["intended_us"]
        return (first_us - since_us) / 1000

    @property
    def gaps_ms(self) -> list[float]:
        return [(b - a) / 1e6 for a, b in pairwise(self.record.sent_ns)]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """All of `requests.jsonl.gz`."""
    with gzip.open(folder / "requests.jsonl.gz") as lines:
        return [orjson.loads(line) for line in lines]


def match_requests(result: Result, lines: Sequence[dict[str, Any]], truth: GroundTruth) -> list[MatchedRequest]:
    """The streams of the measured stage whose tokens count, each with its truth. Raises KeyError if the client has seen
    a stream that the mock never sent."""
    records = {record.id: record for record in truth.records}
    first_us = result.run.warmup_s * 1e6
    last_us = first_us + result.run.duration_s * 1e6
    measured = [line for line in lines if first_us <= line["intended_us"] < last_us and line["first_content_us"]]
    return [MatchedRequest(line, records[line["id"]]) for line in measured]


def start_bounds_us(matched: Sequence[MatchedRequest]) -> tuple[float, float]:
    """The earliest and the latest moment at which the run can have begun, by the server's clock."""
    earliest = max(pair.record.sent_ns[0] / 1000 - pair.line["first_content_us"] for pair in matched)
    latest = min(pair.record.arrived_ns / 1000 - pair.line["sent_us"] for pair in matched)
    return earliest, latest


def is_causality_violated(matched: Sequence[MatchedRequest]) -> bool:
    """Whether the client has seen an effect before its cause."""
    earliest, latest = start_bounds_us(matched)
    return earliest > latest + ROUNDED_US


def compare(result: Result, matched: Sequence[MatchedRequest], truth: GroundTruth) -> list[CheckedFigure]:
    """Counts first: percentiles of other requests would be worthless."""
    began_us = sum(start_bounds_us(matched)) / 2
    summary = result.summary
    gaps = [gap for pair in matched for gap in pair.gaps_ms]
    stalls = [max(pair.gaps_ms) for pair in matched if len(pair.record.sent_ns) > 1]

    def ttfts(what: str) -> list[float]:
        return [pair.true_ttft_ms(what, began_us) for pair in matched]

    rows = [
        CheckedFigure("count", "streams", summary.ttft_ms.count, len(matched), 0),
        CheckedFigure("count", "gaps", summary.itl_ms.count, len(gaps), 0),
        _tokens(result, truth, began_us),
        *_quantiles("TTFT from sending", summary.ttft_from_sent_ms, ttfts("from_sent")),
        *_quantiles("TTFT from arrival", summary.ttft_from_sent_ms, ttfts("from_arrival")),
        *_quantiles("TTFT from intended", summary.ttft_ms, ttfts("from_intended")),
        *_quantiles("ITL", summary.itl_ms, gaps),
        *_quantiles("longest gap", summary.max_stall_ms, stalls),
    ]
    if summary.max_stall_ms.max is not None:
        rows.append(CheckedFigure("longest gap", "max", summary.max_stall_ms.max, max(stalls), _tolerance(max(stalls))))
    return rows


def _quantiles(metric: str, reported: LatencyStats, true: list[float]) -> list[CheckedFigure]:
    ordered = sorted(true)
    rows = []
    for name, q in QUANTILES.items():
        value = getattr(reported, name)
        expected_ = ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1]
        rows.append(CheckedFigure(metric, name, math.nan if value is None else value, expected_, _tolerance(expected_)))
    return rows


def _tolerance(true_ms: float) -> float:
    return max(TOLERANCE * true_ms, TOLERANCE_MS)


def _tokens(result: Result, truth: GroundTruth, began_us: float) -> CheckedFigure:
    """Tokens count when they arrive: those near an end of the stage may be on either side of it."""
    first_us = began_us + result.run.warmup_s * 1e6
    ends_us = (first_us, first_us + result.run.duration_s * 1e6)
    inside, at_edge = 0, 0
    for record in truth.records:
        for at_ns, tokens in zip(record.sent_ns, record.tokens, strict=True):
            at_us = at_ns / 1000
            inside += tokens if ends_us[0] <= at_us < ends_us[1] else 0
            at_edge += tokens if min(abs(at_us - end_us) for end_us in ends_us) < TOLERANCE_MS * 1000 else 0
    return CheckedFigure("count", "tokens", result.summary.output_tokens, inside, at_edge)
