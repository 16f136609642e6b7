"""The record of one request: its times, tokens and end. Times are `perf_counter_ns`; 0 is a moment that never came."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from loadtest.measure.result import ErrorKind


class ReadMode(StrEnum):
    """How the client reads. Times that the client itself distorts do not count as the server's."""

    PLAIN = "plain"
    CANCEL = "cancel"
    SLOW = "slow"
    STALL = "stall"
    RESUME = "resume"


@dataclass(slots=True)
class Record:
    """`content_ns` and `content_tokens` have one entry for each event that carried content."""

    number: int
    turn: int
    workload: str
    tenant: str
    model: str
    stream: bool
    read_mode: ReadMode
    intended_ns: int
    # When the generator began the request; it then connects, if necessary, and sends.
    started_ns: int = 0
    sent_ns: int = 0
    first_byte_ns: int = 0
    content_ns: array[int] = field(default_factory=lambda: array("q"))
    content_tokens: array[int] = field(default_factory=lambda: array("l"))
    done_ns: int = 0
    ended_ns: int = 0
    events: int = 0
    status: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    verified_tokens: int = 0
    completion_id: str = ""
    request_id: str = ""
    error: ErrorKind | None = None
    detail: str = ""
    # Aborted by the client as the scenario planned, or dropped by the server while a stalled client read nothing.
    left_by_plan: bool = False
    resumed: int = 0

    @property
    def is_ok(self) -> bool:
        """Whether it ended well."""
        return self.error is None and not self.left_by_plan

    @property
    def counts_ttft(self) -> bool:
        """Whether its time to the first token describes the server."""
        return self.stream and self.read_mode is not ReadMode.SLOW

    @property
    def counts_gaps(self) -> bool:
        """Whether the times between its tokens describe the server."""
        return self.stream and self.read_mode in {ReadMode.PLAIN, ReadMode.CANCEL}

    @property
    def counts_duration(self) -> bool:
        """Whether its duration and its time per token describe the server."""
        return self.is_ok and self.read_mode is ReadMode.PLAIN

    @property
    def first_token_ns(self) -> int:
        """When the first token came; when the client gave up, if it waited for the first token until a timeout; else 0.

        Without the timeouts, the slowest answers of all would be missing from the distribution."""
        if self.content_ns:
            return self.content_ns[0]
        gave_up = self.error in {ErrorKind.TIMEOUT_FIRST, ErrorKind.TIMEOUT_IDLE, ErrorKind.DEADLINE}
        return self.ended_ns if gave_up and self.sent_ns else 0

    @property
    def tpot_us(self) -> int | None:
        """Time per output token after the first, in microseconds."""
        if not self.stream or len(self.content_ns) < 2 or self.output_tokens < 2:
            return None
        return (self.content_ns[-1] - self.content_ns[0]) // (1000 * (self.output_tokens - 1))

    @property
    def max_gap_us(self) -> int | None:
        """The longest time between two events with content, in microseconds."""
        longest = max((b - a for a, b in pairwise(self.content_ns)), default=None)
        return longest // 1000 if self.stream and longest is not None else None

    def to_log_line(self, began_ns: int) -> dict[str, object]:
        """As one line of `requests.jsonl.gz`: microseconds since the run began, gaps in microseconds."""

        def us(at_ns: int) -> int | None:
            return (at_ns - began_ns) // 1000 if at_ns else None

        content = self.content_ns
        return {
            **{name: getattr(self, name) for name in ("number", "turn", "workload", "tenant", "model", "stream")},
            "manner": self.read_mode,
            "status": self.status or None,
            **{name: getattr(self, name) for name in ("error", "detail", "left_by_plan", "resumed")},
            "id": self.completion_id,
            **{name: getattr(self, name) for name in ("request_id", "prompt_tokens", "output_tokens", "events")},
            **{f"{name}_us": us(getattr(self, f"{name}_ns")) for name in ("intended", "started", "sent", "first_byte")},
            "first_content_us": us(content[0]) if content else None,
            "last_content_us": us(content[-1]) if content else None,
            "done_us": us(self.done_ns),
            "ended_us": us(self.ended_ns),
            "gaps_us": [(b - a) // 1000 for a, b in pairwise(content)],
            "tokens": list(self.content_tokens),
        }
