"""The result of a run: the one document that a run writes (`result.json`) and that reports, verdicts, comparisons and
sweeps read. Nothing here measures, draws or decides.

Times are milliseconds, rates are per second, and every number covers the measured stage alone; only the timeline has
warm-up and drain.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loadtest.measure.histogram import Histogram

__all__ = [
    "Check", "ErrorKind", "Generator", "Group", "Integrity", "LatencyStats", "Outcome", "Result", "ResultPart",
    "Run", "Server", "Summary", "TimelineSecond", "Verdict", "merged_histogram",
]  # fmt: skip


class ErrorKind(StrEnum):
    """Why a request did not end well. The first error of a request counts."""

    CONNECT = "connect"
    TLS = "tls"
    RESET = "reset"
    TIMEOUT_FIRST = "timeout_first"
    TIMEOUT_IDLE = "timeout_idle"
    DEADLINE = "deadline"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_503_SHED = "http_503_shed"
    HTTP_5XX = "http_5xx"
    SSE_ERROR = "sse_error"
    TRUNCATED = "truncated"
    NO_DONE = "no_done"
    NO_FINISH = "no_finish"
    BAD_JSON = "bad_json"
    BAD_EVENT = "bad_event"
    USAGE_MISMATCH = "usage_mismatch"
    OUT_OF_ORDER = "out_of_order"
    CROSS_TALK = "cross_talk"
    WRONG_TOKEN = "wrong_token"  # noqa: S105 - a generated token, no secret
    DROPPED_ARRIVAL = "dropped_arrival"


# A server that sheds load or refuses reports it; each of these means that a stream was incomplete or inconsistent.
INTEGRITY_ERRORS = frozenset(
    {
        ErrorKind.TRUNCATED, ErrorKind.NO_DONE, ErrorKind.NO_FINISH, ErrorKind.BAD_JSON, ErrorKind.BAD_EVENT,
        ErrorKind.USAGE_MISMATCH, ErrorKind.OUT_OF_ORDER, ErrorKind.CROSS_TALK, ErrorKind.WRONG_TOKEN,
    }
)  # fmt: skip


class ResultPart(BaseModel):
    """The base of all parts of a result document."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=True)


class LatencyStats(ResultPart):
    """A latency in milliseconds. With `count` 0 all others are None."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    max: float | None = None
    histogram: dict[str, Any] = Field(default_factory=dict, description="Histogram.packed(), microseconds")

    @classmethod
    def from_histogram(cls, histogram: Histogram) -> LatencyStats:
        """From a histogram of microseconds."""
        if not histogram.count:
            return cls(count=0, histogram=histogram.to_dict())

        def ms(value: float | None) -> float | None:
            return None if value is None else round(value / 1000, 3)

        names = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
        return cls(
            count=histogram.count,
            mean=ms(histogram.mean),
            max=ms(histogram.largest),
            histogram=histogram.to_dict(),
            **{name: ms(histogram.quantile(q)) for name, q in names.items()},
        )


class Summary(ResultPart):
    """The numbers of a set of requests. TTFT and E2E count from the intended start, `..._from_sent_ms` from the moment
    the request was written. ITL is per gap between events that carried content, TPOT per stream."""

    ttft_ms: LatencyStats
    itl_ms: LatencyStats
    tpot_ms: LatencyStats
    e2e_ms: LatencyStats
    ttft_from_sent_ms: LatencyStats
    e2e_from_sent_ms: LatencyStats
    max_stall_ms: LatencyStats = Field(description="the longest gap of each stream")
    requests: int = Field(description="all that were due, dropped arrivals included")
    ok: int
    cancelled_by_plan: int = Field(description="aborted by the client as planned; neither ok nor an error")
    errors_by_kind: dict[str, int]
    good: int = Field(description="ok and within every per-request limit of the SLO")
    output_tokens: int
    input_tokens: int
    output_tokens_per_s: float
    achieved_rps: float
    asked_rps: float | None = Field(description="None in a closed loop")
    goodput_rps: float


class Group(ResultPart):
    """The requests of one workload and one tenant."""

    workload: str
    tenant: str
    summary: Summary


class TimelineSecond(ResultPart):
    """One second of the run. Events count in the second in which they happened (TTFT: the first token; E2E and TPOT:
    the end)."""

    t_s: int = Field(description="seconds since the run began")
    stage: Literal["warmup", "measure", "drain"]
    due: int = 0
    sent: int = 0
    ended: int = 0
    ok: int = 0
    errors: dict[str, int] = Field(default_factory=dict)
    cancelled: int = 0
    in_flight: int = 0
    output_tokens: int = 0
    ttft: dict[str, Any] = Field(default_factory=dict, description="Histogram.packed()")
    itl: dict[str, Any] = Field(default_factory=dict, description="Histogram.packed()")
    tpot: dict[str, Any] = Field(default_factory=dict, description="Histogram.packed()")
    e2e: dict[str, Any] = Field(default_factory=dict, description="Histogram.packed()")


def merged_histogram(seconds: Iterable[TimelineSecond], metric: str) -> Histogram:
    """All values of `metric` ("ttft", "itl", "tpot", "e2e") in these seconds."""
    merged = Histogram()
    for second in seconds:
        if document := getattr(second, metric):
            merged.merge(Histogram.from_dict(document))
    return merged


class Generator(ResultPart):
    """Measurements of the load generator itself."""

    workers: int
    lateness_ms: LatencyStats = Field(description="sent minus intended start")
    loop_lag_ms: LatencyStats = Field(description="how late a greenlet wakes from a sleep of 10 ms")
    cpu_share_max: float = Field(description="largest share of a core, over five seconds, of any worker")
    dropped_arrivals: int
    events: int
    cpu_us_per_event: float | None
    invalid: list[str] = Field(description="reasons why the run proves nothing; empty if it is valid")


class Server(ResultPart):
    """The server's own metrics beside the client's numbers."""

    scraped: bool
    series: dict[str, list[list[float]]] = Field(
        default_factory=dict,
        description="name -> [[t_s, value], ...]: gauges as they were, counters as rates per second",
    )
    generated_tokens: float | None = Field(None, description="the server's count over the run")
    client_tokens: int | None = None
    ttft_gap_ms: float | None = Field(None, description="client's mean TTFT from sending, minus the server's own mean")
    gateway_overhead_ms: float | None = Field(None, description="mean of sluice_overhead_seconds, where there is one")
    left_over: dict[str, float] = Field(
        default_factory=dict,
        description="gauges above their values before the run",
    )
    notes: list[str] = Field(default_factory=list)


class Integrity(ResultPart):
    """Whether streams were complete and correct."""

    checked_streams: int
    verified_tokens: int = Field(description="compared one by one with the synthetic engine's")
    violations: dict[str, int] = Field(description="by kind; empty if clean")
    examples: list[str] = Field(description="a few of them, with request ids")
    freed_after_cancels: bool | None = Field(description="None: no cancels, or no gauges")


class Check(ResultPart):
    """One limit of the SLO and the measured value."""

    name: str
    limit: float
    value: float | None
    met: bool
    low: float | None = Field(None, description="lower bound of the quantile's 95 % interval; None: unknown")
    high: float | None = Field(None, description="upper bound")


class Outcome(StrEnum):
    """In order of precedence, worst first."""

    INTEGRITY = "integrity"
    INVALID = "generator_invalid"
    MISSED = "slo_missed"
    PASS = "pass"  # noqa: S105 - no secret

    @property
    def exit_code(self) -> int:
        return {Outcome.PASS: 0, Outcome.MISSED: 1, Outcome.INVALID: 3, Outcome.INTEGRITY: 4}[self]


class Verdict(ResultPart):
    """The outcome, with every reason in a sentence."""

    outcome: Outcome
    exit_code: int
    reasons: list[str]
    checks: list[Check]


class Run(ResultPart):
    """The parameters of the run, so that it can be repeated."""

    scenario: str
    scenario_yaml: str = Field(description="as it was read, overrides applied")
    url: str
    model: str
    seed: int
    started_at: str = Field(description="ISO 8601, UTC")
    warmup_s: float
    duration_s: float = Field(description="of the measured stage")
    command: str
    versions: dict[str, str]
    machine: str


class Result(ResultPart):
    schema_: Literal["sluice-load/1"] = Field("sluice-load/1", alias="schema")
    run: Run
    summary: Summary
    groups: list[Group]
    timeline: list[TimelineSecond]
    generator: Generator
    server: Server
    integrity: Integrity
    verdict: Verdict

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(by_alias=True, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """The inverse of `write`. Raises pydantic.ValidationError with the field's name, or OSError."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
