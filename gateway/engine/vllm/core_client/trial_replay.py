"""Sends requests to a new engine in an order that shows which of them kill engines (`poison_detector`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from gateway.clock import Clock
from gateway.engine.poison_detector import PoisonDetector

Lock = AbstractContextManager[object]

# For one group, and for the resent requests to have a token each; a prefill that takes longer does not delay the rest.
_PASS_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.01


@dataclass(eq=False, slots=True)
class TrialReplay:
    """The replay after the death of an engine. Names are request ids.

    `tokens` returns how many a request has, None if it has ended; `send` sends it to the engine; `lock` keeps other
    clients of the engine from sending theirs meanwhile.
    """

    poison_detector: PoisonDetector
    clock: Clock
    tokens: Callable[[str], int | None]
    send: Callable[[str], Awaitable[object]]
    lock: Callable[[], Awaitable[Lock]]
    held_back: dict[str, None] = field(default_factory=dict)
    """Requests that wait, in order, for their turn or for the end of the trial."""

    async def run(self, resent: list[str], groups: list[list[str]], resend_lock: Lock) -> None:
        """When the requests that have been `resent` have a token each, release `resend_lock` and send group by group,
        and then the requests that have arrived since."""
        with resend_lock:
            await self.wait_passed(resent)
        for group in groups:
            with await self.lock():
                self.poison_detector.begin_trial(group)
                for name in group:
                    self.held_back.pop(name, None)
                    await self.send(name)
                await self.wait_passed(group)
                self.poison_detector.pass_trial()
        while self.held_back:
            name = next(iter(self.held_back))
            del self.held_back[name]
            await self.send(name)

    async def wait_passed(self, names: list[str]) -> None:
        """Wait until each of them has ended or has the tokens that clear it, with a limit."""
        began_s = self.clock.now()
        while names and self.clock.now() - began_s < _PASS_WITHIN_S:
            await asyncio.sleep(_LOOK_EVERY_S)
            names = [name for name in names if not self._has_passed(name)]

    def _has_passed(self, name: str) -> bool:
        tokens = self.tokens(name)
        return tokens is None or self.poison_detector.has_passed(name, tokens)
