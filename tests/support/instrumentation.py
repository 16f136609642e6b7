"""An `Instrumentation` that records all reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.domain import Caller, Cause, RequestStats
from gateway.transports.common.accounting import new_stats


@dataclass
class Recorder:
    """Reports by kind, each in order."""

    waits: list[float] = field(default_factory=list)
    rejections: list[str] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    spared: list[int] = field(default_factory=list)
    endings: list[tuple[Cause, int]] = field(default_factory=list)
    uses: list[tuple[str, Cause, int, int]] = field(default_factory=list)
    resumes: list[str] = field(default_factory=list)
    recoveries: list[tuple[str, int]] = field(default_factory=list)
    restarts: int = 0
    exchanges: list[tuple[str, str, float]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def rejected(self, reason: str) -> None:
        self.rejections.append(reason)

    def overhead(self, seconds: float) -> None:
        self.overheads.append(seconds)

    def first_token(self, seconds: float) -> None:
        self.first_tokens.append(seconds)

    def token_gap(self, seconds: float) -> None:
        self.gaps.append(seconds)

    def merged(self, deltas: int) -> None:
        self.spared.append(deltas)

    def ended(self, cause: Cause, wasted_tokens: int) -> None:
        self.endings.append((cause, wasted_tokens))

    def used(self, tenant: str, cause: Cause, prompt_tokens: int, completion_tokens: int) -> None:
        self.uses.append((tenant, cause, prompt_tokens, completion_tokens))

    def resumed(self, result: str) -> None:
        self.resumes.append(result)

    def recovered(self, result: str, streams: int) -> None:
        self.recoveries.append((result, streams))

    def restarted(self) -> None:
        self.restarts += 1

    def served(self, endpoint: str, outcome: str, seconds: float) -> None:
        self.exchanges.append((endpoint, outcome, seconds))

    def loop_lag(self, seconds: float) -> None:
        self.lags.append(seconds)

    @property
    def labels(self) -> list[tuple[str, str]]:
        """The labels of the exchanges, without their durations."""
        return [(endpoint, outcome) for endpoint, outcome, _ in self.exchanges]


def a_caller(owner: str | None = None, arrival_s: float = 1000.0) -> Caller:
    """The caller of a request."""
    return Caller(owner=owner, request_id="req-1", arrival_s=arrival_s, arrival_wall_s=1_700_001_000.0)


def some_stats(
    instrumentation: Recorder | None = None,
    owner: str | None = None,
    stream_id: str | None = None,
    arrival_s: float = 1000.0,
) -> RequestStats:
    """The stats of a request that has just arrived; `stream_id` as the registry gives it."""
    stats = new_stats(a_caller(owner, arrival_s), instrumentation or Recorder())
    stats.id = stream_id
    return stats


__all__ = ["Recorder", "a_caller", "some_stats"]
