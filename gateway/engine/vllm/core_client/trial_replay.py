"""Sends requests to a new engine in an order that shows which of them kill engines (`poison_detector`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from gateway.clock import Clock
from gateway.engine.poison_detector import PoisonDetector

Lock = AbstractContextManager[object]

# For one group, and for those that go on to have a token each; a prefill that takes longer holds up nobody.
_PASSES_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.01


class TrialReplay:
    """One after the death of an engine. Names are request ids."""

    def __init__(
        self,
        suspicion: PoisonDetector,
        clock: Clock,
        *,
        tokens: Callable[[str], int | None],
        send: Callable[[str], Awaitable[object]],
        alone: Callable[[], Awaitable[Lock]],
    ) -> None:
        """`tokens`: how many a request has, None if it has ended; `send` sends it to the engine; `alone` keeps other
        clients of the engine from sending theirs meanwhile."""
        self._suspicion = suspicion
        self._clock = clock
        self._tokens = tokens
        self._send = send
        self._alone = alone
        self.held_back: dict[str, None] = {}
        """What waits, in order: for its turn, or for the end of the trial."""

    async def run(self, at_once: list[str], groups: list[list[str]], together: Lock) -> None:
        """When those that have been sent `at_once` have a token each, send group by group, and then what has arrived
        since; `together` is closed before the first group."""
        with together:
            await self.wait_passed(at_once)
        for group in groups:
            with await self._alone():
                self._suspicion.begin_trial(group)
                for name in group:
                    self.held_back.pop(name, None)
                    await self._send(name)
                await self.wait_passed(group)
                self._suspicion.pass_trial()
        while self.held_back:
            name = next(iter(self.held_back))
            del self.held_back[name]
            await self._send(name)

    async def wait_passed(self, names: list[str]) -> None:
        """Wait until each of them has ended or made what clears it, but not for ever."""
        began_s = self._clock.now()
        while names and self._clock.now() - began_s < _PASSES_WITHIN_S:
            await asyncio.sleep(_LOOK_EVERY_S)
            names = [name for name in names if not self._has_passed(name)]

    def _has_passed(self, name: str) -> bool:
        tokens = self._tokens(name)
        return tokens is None or self._suspicion.has_passed(name, tokens)


__all__ = ["Lock", "TrialReplay"]
