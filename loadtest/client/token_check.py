"""Checks the tokens of one response: the server's count, the received count, and the tokens themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.engine import deterministic_tokens
from loadtest.measure.record import Record
from loadtest.measure.result import ErrorKind
from loadtest.scenario.workload import PreparedRequest


class TokenCheck:
    """For one response. Errors are passed to `fail`."""

    def __init__(self, request: PreparedRequest, record: Record, fail: Callable[[ErrorKind, str], object]) -> None:
        # The latest usage, and whether it was the one at the end of the answer.
        self.total = 0
        self._is_final = False
        self._request = request
        self._record = record
        self._fail = fail
        # The first id and the length of the prompt; tokens so far by choice.
        self._prompt_start = request.prompt_start
        self._counts: dict[int, int] = {}

    def add_usage(self, usage: dict[str, Any], *, final: bool) -> int:
        """Record the usage of an event. Returns its increase in tokens."""
        total = int(usage["completion_tokens"])
        grown = total - self.total
        if grown < 0:
            self._fail(ErrorKind.USAGE_MISMATCH, f"usage went from {self.total} to {total} tokens")
        elif grown and final and self.total:
            self._fail(
                ErrorKind.USAGE_MISMATCH, f"{self.total} tokens in the last event's usage, {total} in the final usage"
            )
        self.total = total
        self._is_final = self._is_final or final or not self._request.counts_by_usage
        self._record.prompt_tokens = int(usage["prompt_tokens"])
        return max(0, grown)

    def find_prompt_ids(self, document: dict[str, Any], choices: Sequence[dict[str, Any]]) -> None:
        """Find the prompt's ids, if they are needed and unknown; the endpoint determines where they are."""
        if not self._request.is_verified or self._prompt_start is not None:
            return
        for place in (document, *choices):
            if ids := place.get("prompt_token_ids"):
                self._prompt_start = (int(ids[0]), len(ids))

    def verify(self, index: int, ids: list[int]) -> None:
        """Compare a choice's next tokens with the synthetic engine's."""
        if not self._request.is_verified:
            return
        if self._prompt_start is None:
            self._fail(ErrorKind.BAD_EVENT, "tokens before the prompt's ids, despite return_token_ids")
            return
        first, start = self._prompt_start
        at = start + self._counts.get(index, 0)
        if ids != (due := deterministic_tokens.tokens(first, at, len(ids))):
            self._fail(ErrorKind.WRONG_TOKEN, f"tokens {ids[:8]} at position {at} instead of {due[:8]}")
        else:
            self._record.verified_tokens += len(ids)
        self._counts[index] = self._counts.get(index, 0) + len(ids)

    def check_totals(self, counted: int | None, events: int) -> None:
        """At the end: `counted` tokens came (None if they cannot be counted) in `events` events."""
        allowed = self._request.max_tokens * self._request.choices
        if not self._is_final:
            self._fail(ErrorKind.USAGE_MISMATCH, "no usage, although it was requested")
        elif self.total > allowed:
            self._fail(ErrorKind.USAGE_MISMATCH, f"{self.total} tokens instead of at most {allowed}")
        elif counted is not None and counted != self.total:
            self._fail(ErrorKind.USAGE_MISMATCH, f"{counted} tokens received, usage is {self.total}")
        elif events > self.total:
            self._fail(ErrorKind.USAGE_MISMATCH, f"{events} events with tokens received, usage is {self.total}")
