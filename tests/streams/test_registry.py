from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest

from gateway.admission.gate import Gate
from gateway.engine.base import CURRENT_TALLY, Route
from gateway.errors import ClientError, EngineFailed, MethodNotAllowed, NotFound, NotReady
from gateway.model import Cause, Endpoint
from gateway.streamlog.base import Batch
from gateway.streamlog.memory import PendingLog
from gateway.streams.registry import Registry, Status
from tests.support.engine import ScriptedEngine
from tests.support.facts import Recorder, a_caller, a_tally
from tests.support.time import clock, in_virtual_time, settle

BODY = orjson.dumps({"stream": True})


class House:
    """A registry over a scripted engine."""

    def __init__(self, seats: int = 2, engine: Callable[[], ScriptedEngine] | None = None) -> None:
        self.facts = Recorder()
        self.engine = ScriptedEngine()
        self.gate = Gate(max_concurrent=seats, max_waiting=4, queue_timeout_s=60, clock=clock(), facts=self.facts)
        self.registry = Registry(
            engine=engine or (lambda: self.engine),
            gate=self.gate,
            log=PendingLog,
            clock=clock(),
            facts=self.facts,
        )

    async def follow(self, body: bytes = BODY, owner: str | None = None) -> Batch:
        """Open a stream and wait for its first news."""
        async with self.registry.open(Endpoint.CHAT, body, a_tally(self.facts, owner)) as stream:
            return await stream.follower.take()

    @property
    def at_rest(self) -> bool:
        return (self.gate.taken, self.gate.waiting, self.registry.active) == (0, 0, 0)


@in_virtual_time
async def test_a_stream_that_ends_leaves_nothing_behind() -> None:
    house = House()
    async with house.registry.open(Endpoint.CHAT, BODY, a_tally(house.facts)) as stream:
        assert (house.registry.active, house.gate.taken) == (1, 1)

        house.engine.runs[0].end("all")
        batch = await stream.follower.take()

        assert batch.ended is not None
        assert house.at_rest
    assert house.engine.runs[0].aborts == 0


@in_virtual_time
async def test_leaving_before_the_end_is_a_disconnect_and_aborts() -> None:
    house = House()
    async with house.registry.open(Endpoint.CHAT, BODY, a_tally(house.facts)) as stream:
        pass

    assert stream.producer.ended is not None
    assert stream.producer.ended.cause is Cause.DISCONNECTED
    assert house.engine.runs[0].aborts == 1
    assert house.at_rest


@in_virtual_time
async def test_a_bad_body_never_reaches_the_gate() -> None:
    house = House()
    with pytest.raises(ClientError):
        await house.follow(b"{")

    assert house.facts.waits == []
    assert house.at_rest


@pytest.mark.parametrize("stage", ["prepare_error", "submit_error"])
@pytest.mark.parametrize("error", [ClientError("No."), RuntimeError("a defect")])
@in_virtual_time
async def test_a_request_that_fails_before_it_runs_leaves_nothing_behind(stage: str, error: Exception) -> None:
    house = House()
    setattr(house.engine, stage, error)
    with pytest.raises(type(error)):
        await house.follow()

    assert house.at_rest


@pytest.mark.parametrize("stage", ["prepare_hold", "submit_hold"])
@in_virtual_time
async def test_a_request_cancelled_before_it_runs_leaves_nothing_behind(stage: str) -> None:
    house = House()
    setattr(house.engine, stage, asyncio.Event())
    task = asyncio.get_running_loop().create_task(house.follow())
    await settle()

    assert house.gate.taken == 1

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert house.at_rest


@in_virtual_time
async def test_a_request_for_n_choices_takes_n_seats() -> None:
    house = House(seats=4)
    task = asyncio.get_running_loop().create_task(house.follow(orjson.dumps({"stream": True, "n": 3})))
    await settle()

    assert house.gate.taken == 3

    house.engine.runs[0].fail(EngineFailed("Down."))
    await task

    assert house.at_rest


@in_virtual_time
async def test_a_request_whose_engine_died_while_it_waited_hears_so() -> None:
    """The engine is asked for again after the wait: the one of before it may be gone."""
    engines: list[ScriptedEngine] = [ScriptedEngine()]

    def engine() -> ScriptedEngine:
        if not engines:
            raise NotReady("Starting.")
        return engines[0]

    house = House(seats=1, engine=engine)
    held = await house.gate.enter()
    task = asyncio.get_running_loop().create_task(house.follow())
    await settle()
    engines.clear()
    held.release()
    with pytest.raises(NotReady):
        await task

    assert house.at_rest


@in_virtual_time
async def test_time_in_the_queue_is_not_the_gateways_overhead() -> None:
    house = House(seats=1)
    held = await house.gate.enter()
    tally = a_tally(house.facts)

    async def open_and_leave() -> None:
        async with house.registry.open(Endpoint.CHAT, BODY, tally):
            pass

    task = asyncio.get_running_loop().create_task(open_and_leave())
    await asyncio.sleep(9)
    held.release()
    await task

    assert tally.queued_s == pytest.approx(9)
    assert house.facts.overheads == [pytest.approx(0, abs=1e-3)]


@in_virtual_time
async def test_cancelling_by_id_tells_the_final_count_and_frees_everything_at_once() -> None:
    house = House()
    task = asyncio.get_running_loop().create_task(house.follow(owner="ann"))
    await settle()
    house.engine.runs[0].say("Hi", 3)
    status = house.registry.cancel("chatcmpl-1", a_caller("ann"))

    assert status == Status("chatcmpl-1", "cancelled", 7, 3)
    assert house.at_rest
    assert house.engine.runs[0].aborts == 1

    batch = await task

    assert batch.ended is not None
    assert batch.ended.cause is Cause.CANCELLED
    assert house.engine.runs[0].aborts == 1


@pytest.mark.parametrize("owner", ["bob", None])
@in_virtual_time
async def test_nobody_cancels_anothers_request_or_learns_that_it_exists(owner: str | None) -> None:
    house = House()
    task = asyncio.get_running_loop().create_task(house.follow(owner="ann"))
    await settle()
    with pytest.raises(NotFound) as other:
        house.registry.cancel("chatcmpl-1", a_caller(owner))
    with pytest.raises(NotFound) as unknown:
        house.registry.cancel("chatcmpl-9", a_caller(owner))

    assert other.value.message == unknown.value.message.replace("chatcmpl-9", "chatcmpl-1")

    house.engine.runs[0].end()
    await task


@in_virtual_time
async def test_what_vllms_app_runs_can_be_cancelled_by_its_id_too() -> None:
    house = House()
    house.engine.mounted["resp-1", "ann"] = a_tally()

    assert house.registry.cancel("resp-1", a_caller("ann")).id == "resp-1"
    with pytest.raises(NotFound):
        house.registry.cancel("resp-1", a_caller("bob"))


@in_virtual_time
async def test_a_mounted_path_that_works_the_engine_holds_a_seat_and_a_light_one_does_not() -> None:
    house = House()
    house.engine.routes = {("POST", "/v1/embeddings"): Route.WORKS, ("GET", "/v1/models"): Route.LIGHT}
    tally = a_tally(house.facts)
    async with house.registry.mounted("POST", "/v1/embeddings", tally):
        assert house.gate.taken == 1
        assert CURRENT_TALLY.get() is tally
    assert CURRENT_TALLY.get() is None
    async with house.registry.mounted("GET", "/v1/models", tally):
        assert house.gate.taken == 0
    assert house.at_rest


@in_virtual_time
async def test_a_mounted_path_that_fails_gives_its_seat_back() -> None:
    house = House()
    house.engine.routes = {("POST", "/v1/embeddings"): Route.WORKS}
    with pytest.raises(RuntimeError):
        async with house.registry.mounted("POST", "/v1/embeddings", a_tally()):
            raise RuntimeError("a defect")

    assert house.at_rest
    assert CURRENT_TALLY.get() is None


@in_virtual_time
async def test_unknown_paths_and_wrong_methods_are_named() -> None:
    house = House()
    house.engine.routes = {("POST", "/v1/embeddings"): Route.WORKS}
    with pytest.raises(NotFound, match="/nothing"):
        async with house.registry.mounted("GET", "/nothing", a_tally()):
            pass
    with pytest.raises(MethodNotAllowed, match="GET"):
        async with house.registry.mounted("GET", "/v1/embeddings", a_tally()):
            pass
