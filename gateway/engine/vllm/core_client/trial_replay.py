"""Sends requests to a new engine in an order that shows which of them kill engines (`poison_detector`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from gateway.clock import Clock
from gateway.engine.poison_detector import PoisonDetector

Lock = AbstractContextManager[object]

# For one group, and for the resent requests to have a token each; a prefill that takes longer does not delay the rest.
_PASS_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.01


class TrialReplay:
    """The replay after the death of an engine. Names are request ids."""

    def __init__(
        self,
        poison_detector: PoisonDetector,
        clock: Clock,
        *,
        tokens: Callable[[str], int | None],
        send: Callable[[str], Awaitable[object]],
        lock: Callable[[], Awaitable[Lock]],
    ) -> None:
        """`tokens` returns how many a request has, None if it has ended; `send` sends it to the engine; `lock` keeps
        other clients of the engine from sending theirs meanwhile."""
        self._poison_detector = poison_detector
        self._clock = clock
        self._tokens = tokens
        self._send = send
        self._lock = lock
        self.held_back: dict[str, None] = {}
        """Requests that wait, in order, for their turn or for the end of the trial."""

    async def run(self, resent: list[str], groups: list[list[str]], resend_lock: Lock) -> None:
        """When the requests that have been `resent` have a token each, release `resend_lock` and send group by group,
        and then the requests that have arrived since."""
        with resend_lock:
            await self.wait_passed(resent)
        for group in groups:
            with await self._lock():
                self._poison_detector.begin_trial(group)
                for name in group:
                    self.held_back.pop(name, None)
                    await self._send(name)
                await self.wait_passed(group)
                self._poison_detector.pass_trial()
        while self.held_back:
            name = next(iter(self.held_back))
            del self.held_back[name]
            await self._send(name)

    async def wait_passed(self, names: list[str]) -> None:
        """Wait until each of them has ended or has the tokens that clear it, with a limit."""
        began_s = self._clock.now()
        while names and self._clock.now() - began_s < _PASS_WITHIN_S:
            await asyncio.sleep(_LOOK_EVERY_S)
            names = [name for name in names if not self._has_passed(name)]

    def _has_passed(self, name: str) -> bool:
        tokens = self._tokens(name)
        return tokens is None or self._poison_detector.has_passed(name, tokens)
