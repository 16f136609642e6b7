"""The client that outlives its engine, over stand-ins for vLLM's: importing the real one takes ten seconds. The
end-to-end tests hold it against vLLM's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.time import clock, in_virtual_time, settle
from tests.unit.gateway.engine.vllm.core_client.stub_core import Bench, Process, outputs
from tests.unit.gateway.engine.vllm.core_client.test_replay import a_request
from tests.unit.gateway.engine.vllm.stub_vllm import Died, beside_stub


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "core_client.restartable") as module:
        yield module


@in_virtual_time
async def test_while_the_engine_lives_everything_passes(core: Any) -> None:
    bench = Bench(core)
    await bench.add("r1", [])
    await asyncio.sleep(5)
    output = outputs(("r1", None))
    bench.first.outputs.put_nowait(output)

    assert await bench.core.get_output_async() is output
    assert bench.core.last_output_s == clock().now()
    assert [request.request_id for request in bench.first.added] == ["r1"]
    assert bench.core.other == bench.first.other
    assert not bench.core.lost.is_set()

    await bench.core.abort_requests_async(["r1"])

    assert bench.first.aborted == ["r1"]


@in_virtual_time
async def test_a_death_is_a_pause_for_the_task_that_waits_for_outputs(core: Any) -> None:
    bench = Bench(core)
    waiting = asyncio.get_running_loop().create_task(bench.core.get_output_async())
    bench.first.outputs.put_nowait(Died())
    await asyncio.sleep(100)

    assert bench.core.lost.is_set()
    assert not waiting.done()
    assert not bench.core.resources.engine_dead, "AsyncLLM would fail every request"

    recovery = await bench.core.replace(bench.second)
    output = outputs()
    bench.second.outputs.put_nowait(output)

    assert await waiting is output
    assert (recovery.continued, dict(recovery.failed)) == (0, {})
    assert not bench.core.lost.is_set()
    assert bench.core.last_output_s == clock().now()


@in_virtual_time
async def test_calls_to_a_dead_engine_fail(core: Any) -> None:
    bench = Bench(core)
    loop = asyncio.get_running_loop()
    asked, answered = loop.create_future(), loop.create_future()
    answered.set_result("yes")
    bench.first.utility_results = {1: asked, 2: answered}
    bench.core.mark_lost()
    bench.core.mark_lost()

    assert isinstance(asked.exception(), Died)
    assert answered.result() == "yes"


@in_virtual_time
async def test_when_there_will_be_no_other_engine_everything_fails(core: Any) -> None:
    bench = Bench(core)
    waiting = asyncio.get_running_loop().create_task(bench.core.get_output_async())
    bench.first.outputs.put_nowait(Died())
    await settle()
    bench.core.fail_all()
    with pytest.raises(Died):
        await waiting
    with pytest.raises(Died):
        await bench.core.add_request_async(a_request())
    assert bench.core.resources.engine_dead


@in_virtual_time
async def test_an_old_clients_last_error_is_not_the_new_ones(core: Any) -> None:
    bench = Bench(core)
    waiting = asyncio.get_running_loop().create_task(bench.core.get_output_async())
    await settle()
    bench.core.mark_lost()
    await bench.core.replace(bench.second)
    bench.first.outputs.put_nowait(Died())
    bench.second.outputs.put_nowait(outputs())
    await waiting

    assert not bench.core.lost.is_set()


@in_virtual_time
async def test_an_answer_of_the_busy_loop_is_a_sign_of_life(core: Any) -> None:
    bench = Bench(core)
    await asyncio.sleep(7)

    assert not await bench.core.is_paused()
    assert bench.core.last_output_s == clock().now()

    output_s = clock().now()
    bench.first.paused_after_s = 100
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.core.is_paused(), 5)
    bench.first.paused_after_s, bench.first.dead = 0, True
    with pytest.raises(Died):
        await bench.core.is_paused()

    assert bench.core.last_output_s == output_s


@in_virtual_time
async def test_a_send_that_a_closed_socket_ends_is_not_the_end_of_its_request(core: Any) -> None:
    """pyzmq cancels what a socket that is closed has not sent: that of an engine which is not reached any more."""
    bench = Bench(core)
    bench.first.adding = stuck = asyncio.Event()
    sent: list[asyncio.Future[Any]] = []
    stuck.wait = lambda: sent.append(asyncio.get_running_loop().create_future()) or sent[-1]  # type: ignore[assignment,func-returns-value]
    adding = asyncio.get_running_loop().create_task(bench.add("r1", []))
    await settle()
    bench.core.mark_lost()
    sent[0].cancel()
    await adding
    await bench.core.replace(bench.second)

    assert [one.request_id for one in bench.second.added] == ["r1"]


@in_virtual_time
async def test_a_request_that_is_cancelled_while_it_is_sent_leaves_nothing(core: Any) -> None:
    """AsyncLLM has no name for it yet, by which it would abort it."""
    bench = Bench(core)
    bench.first.adding = asyncio.Event()
    adding = asyncio.get_running_loop().create_task(bench.add("r1", []))
    await settle()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    bench.core.mark_lost()
    await bench.core.replace(bench.second)

    assert (bench.processor.request_states, bench.first.aborted, bench.second.added) == ({}, ["r1"], [])


@in_virtual_time
async def test_processes_are_killed_and_waited_for(core: Any) -> None:
    bench = Bench(core)
    bench.core.kill()
    bench.core.free_dead_engine()

    assert bench.first.process.acts == ["kill", "shutdown 0", "kill", "join 10"]

    bench.first.resources.engine_manager = None
    bench.core.kill()


@in_virtual_time
async def test_vllms_own_finding_is_asked_for(core: Any) -> None:
    bench = Bench(core)

    assert not bench.core.has_died()

    bench.first.resources.engine_dead = True

    assert bench.core.has_died()


# Data-parallel engines: vLLM ends all of them when one dies.


@in_virtual_time
async def test_requests_aborted_because_another_engine_died_go_on(core: Any) -> None:
    """vLLM stops the others in good order, and they abort what they have; no client has asked for that."""
    bench = Bench(core)
    received = await bench.add("r1", [7])
    await bench.add("r2", [8])
    await bench.add("mine", [9])
    await bench.core.abort_requests_async(["mine"])
    bench.first.resources.engine_manager.processes.append(other := Process())
    other.alive = False
    bench.first.outputs.put_nowait(outputs(("r1", "abort"), ("r2", "length"), ("mine", "abort"), ("r1", None)))
    output = await bench.core.get_output_async()

    assert [(one.request_id, one.finish_reason) for one in output.outputs] == [
        ("r2", "length"),
        ("mine", "abort"),
        ("r1", None),
    ]
    assert bench.core.lost.is_set()
    assert bench.core.has_died()

    recovery = await bench.core.replace(bench.second)

    assert [request.request_id for request in bench.second.added] == ["r1"]
    assert recovery.continued == 1
    assert received == []


@in_virtual_time
async def test_an_engine_that_gives_up_a_request_by_itself_is_believed(core: Any) -> None:
    bench = Bench(core)
    await bench.add("r1", [7])
    bench.first.outputs.put_nowait(output := outputs(("r1", "abort")))

    assert await bench.core.get_output_async() is output
    assert [one.finish_reason for one in output.outputs] == ["abort"]
    assert not bench.core.lost.is_set()


@in_virtual_time
async def test_of_several_engines_the_silent_one_counts(core: Any) -> None:
    bench = Bench(core)
    bench.first.core_engines = (b"0", b"1")
    await bench.core.replace(bench.first)
    began_s = clock().now()
    for number in (0, 0, 1):
        await asyncio.sleep(5)
        output = outputs()
        output.engine_index = number
        bench.first.outputs.put_nowait(output)
        await bench.core.get_output_async()

        assert bench.core.last_output_s == (began_s if number == 0 else clock().now() - 5)

    assert (bench.core.engine_count, bench.core.silent_engine) == (2, 0)
    await bench.core.is_paused()
    assert bench.core.last_output_s == clock().now()
