"""The order in which requests are sent to a new engine, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from gateway.engine.poison_detector import PoisonDetector
from gateway.engine.vllm.core_client.trial_replay import TrialReplay
from tests.support.time import clock, in_virtual_time


class Bench:
    def __init__(self, *names: str) -> None:
        self.detector = PoisonDetector()
        self.tokens: dict[str, int] = dict.fromkeys(names, 0)
        self.acts: list[str] = []
        self.trial = TrialReplay(self.detector, clock(), tokens=self.tokens.get, send=self._send, lock=self._lock)

    async def _send(self, name: str) -> None:
        self.acts.append(name)
        self.detector.record_send(name, self.tokens[name])

    async def _lock(self) -> AbstractContextManager[object]:
        return self.noted("lock")

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        self.acts.append(f"+{name}")
        yield
        self.acts.append(f"-{name}")

    def start(self, resent: list[str], groups: list[list[str]]) -> asyncio.Task[None]:
        self.detector.record_death(dict.fromkeys([*resent, *(name for group in groups for name in group)], 0))
        return asyncio.get_running_loop().create_task(self.trial.run(resent, groups, self.noted("resend")))


@in_virtual_time
async def test_each_group_waits_for_the_token_of_the_one_before() -> None:
    bench = Bench("old", "a", "b", "late")
    bench.trial.held_back = {"a": None, "b": None, "late": None}
    running = bench.start(["old"], [["a"], ["b"]])
    await asyncio.sleep(1)

    assert bench.acts == ["+resend"]

    bench.tokens["old"] = 1
    await asyncio.sleep(1)

    assert bench.acts == ["+resend", "-resend", "+lock", "a"]

    bench.tokens["a"] = 1
    await asyncio.sleep(1)
    del bench.tokens["b"]
    await running

    assert bench.acts == ["+resend", "-resend", "+lock", "a", "-lock", "+lock", "b", "-lock", "late"]
    assert bench.trial.held_back == {}


@in_virtual_time
async def test_a_long_prefill_does_not_delay_the_rest_for_ever() -> None:
    bench = Bench("old", "a")
    began_s = clock().now()
    running = bench.start(["old"], [])
    await running

    assert 10 <= clock().now() - began_s < 11
