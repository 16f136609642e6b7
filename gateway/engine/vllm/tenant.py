"""vLLM's client of engine processes that belong to a parent, made to outlive them as `core` does.

vLLM watches engine processes only in the process that has started them, so their death is told by the landlord; and
what we find out ourselves is told to the landlord.
"""

from __future__ import annotations

from typing import Any

from gateway.clock import Clock
from gateway.engine.base import Landlord, Revival
from gateway.engine.vllm import child
from gateway.engine.vllm.core import LastingCore


class SharedCore(LastingCore):
    """A `Tenant`."""

    def __init__(self, core: Any, output_processor: Any, clock: Clock, landlord: Landlord) -> None:
        super().__init__(core, output_processor, clock)
        self._landlord = landlord
        self.stats_s: dict[int, float] = {}
        landlord.meet(self)

    @property
    def busy(self) -> bool:
        return bool(self._output_processor.has_unfinished_requests())

    def _hear(self, outputs: Any) -> None:
        super()._hear(outputs)
        if outputs.scheduler_stats is not None:
            self.stats_s[outputs.engine_index] = self._clock.now()

    def lose(self) -> None:
        if not self.lost.is_set():
            # Heard of by the landlord already, or to be heard: then its processes are ended, whatever they do.
            self._landlord.complain()
        super().lose()

    def _falls(self) -> bool:
        # The processes are not ours to look at.
        return self.lost.is_set()

    def kill(self) -> None:
        """`lose` follows, which tells whose processes they are."""

    async def replace(self, core: Any) -> Revival:
        revival = await super().replace(core)
        self._landlord.meet(self)
        return revival

    async def evict(self, number: int) -> None:
        await self._core.call_utility_async(child.EVICT, number)


__all__ = ["SharedCore"]
