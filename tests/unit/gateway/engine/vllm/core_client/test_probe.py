from __future__ import annotations

import asyncio

from gateway.engine.vllm.core_client.watch import Probe
from tests.support.time import clock, in_virtual_time, settle


class Asked:
    def __init__(self) -> None:
        self.questions: list[asyncio.Future[bool]] = []

    def __call__(self) -> asyncio.Future[bool]:
        self.questions.append(asyncio.get_running_loop().create_future())
        return self.questions[-1]


@in_virtual_time
async def test_one_question_a_second_and_never_two_at_once() -> None:
    asked = Asked()
    probe = Probe(asked, clock().now())
    began_s = clock().now()

    assert probe.step(clock().now()) == began_s

    for _ in range(20):
        await asyncio.sleep(0.5)
        assert probe.step(clock().now()) == began_s

    assert len(asked.questions) == 1

    asked.questions[0].set_result(True)
    await settle()

    assert probe.step(clock().now()) == clock().now(), "the next one, at once: the last is long ago"
    assert probe.is_paused

    asked.questions[1].set_result(False)
    await settle()

    assert probe.step(clock().now()) is None
    assert not probe.is_paused

    await asyncio.sleep(1)

    assert probe.step(clock().now()) == clock().now()

    probe.close()


@in_virtual_time
async def test_a_question_that_fails_is_asked_again() -> None:
    asked = Asked()
    probe = Probe(asked, clock().now())
    probe.step(clock().now())
    asked.questions[0].set_exception(RuntimeError("the engine is dead"))
    await settle()
    await asyncio.sleep(1)

    assert probe.step(clock().now()) == clock().now()
    assert len(asked.questions) == 2

    probe.close()
