"""A worker's gate, the parent's permit server and the real gate behind it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.admission.gate import Gate, Permit
from gateway.errors import ClientError, Overloaded
from gateway.multiprocess.messages import AcquirePermit, ParentMessage, PermitGranted, PermitRefused, ReleasePermit
from gateway.multiprocess.parent.permit_server import PermitServer
from gateway.multiprocess.worker.gate import RemoteGate
from tests.support.instrumentation import Recorder
from tests.support.time import clock, in_virtual_time, settle

# One way, in seconds.
WIRE_S = 0.001


class Worker:
    """A worker's gate and its permit server; a message takes `WIRE_S`."""

    def __init__(self, gate: Gate, slots: int) -> None:
        self.instrumentation = Recorder()
        self.permits = PermitServer(gate, self._to_worker)
        self.gate = RemoteGate(
            max_concurrent=slots, clock=clock(), instrumentation=self.instrumentation, send=self._to_parent
        )

    def enter(self, slots: int = 1) -> asyncio.Task[Permit]:
        return asyncio.get_running_loop().create_task(self.gate.enter(slots))

    def _to_parent(self, message: AcquirePermit | ReleasePermit) -> None:
        handle = self.permits.acquire if isinstance(message, AcquirePermit) else self.permits.release
        asyncio.get_running_loop().call_later(WIRE_S, handle, message)

    def _to_worker(self, message: ParentMessage) -> None:
        assert isinstance(message, PermitGranted | PermitRefused)
        handle = self.gate.on_granted if isinstance(message, PermitGranted) else self.gate.on_refused
        asyncio.get_running_loop().call_later(WIRE_S, handle, message)


class Parent:
    """One gate, several workers."""

    def __init__(self, slots: int = 2, waiting: int = 8, timeout_s: float = 60.0, workers: int = 2) -> None:
        self.gate = Gate(
            max_concurrent=slots,
            max_waiting=waiting,
            queue_timeout_s=timeout_s,
            clock=clock(),
            instrumentation=Recorder(),
        )
        self.workers = [Worker(self.gate, slots) for _ in range(workers)]

    @property
    def slots(self) -> tuple[int, int]:
        return self.gate.slots_taken, self.gate.queued


@in_virtual_time
async def test_a_permit_takes_one_round_trip() -> None:
    parent = Parent()
    began_s = clock().now()
    permit = await parent.workers[0].enter()

    assert clock().now() - began_s == pytest.approx(2 * WIRE_S)
    assert parent.workers[0].instrumentation.waits == [pytest.approx(2 * WIRE_S)]
    assert (parent.slots, parent.workers[0].gate.slots_taken) == ((1, 0), 1)

    permit.release()
    permit.release()
    await asyncio.sleep(1)

    assert (parent.slots, parent.workers[0].gate.slots_taken) == ((0, 0), 0)


@in_virtual_time
async def test_slots_are_shared_by_all_workers_in_order_of_arrival() -> None:
    parent = Parent(slots=2)
    one, two = parent.workers
    held = [await one.enter(), await two.enter()]
    waiting = []
    for worker in (two, one, two):
        waiting.append(worker.enter())
        await asyncio.sleep(0.1)

    assert parent.slots == (2, 3)
    assert (one.gate.queued, two.gate.queued) == (1, 2)

    for index, permit in enumerate(held):
        permit.release()
        await asyncio.sleep(0.1)

        assert [task.done() for task in waiting] == [number <= index for number in range(3)]

    for task in waiting:
        (await task).release()
        await asyncio.sleep(0.1)

    assert parent.slots == (0, 0)


@in_virtual_time
async def test_a_full_queue_refuses_with_its_reason_and_when_to_retry() -> None:
    parent = Parent(slots=1, waiting=1)
    one, two = parent.workers
    permit, waiting = await one.enter(), one.enter()
    await asyncio.sleep(0.1)
    with pytest.raises(Overloaded) as caught:
        await two.enter()

    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    assert two.instrumentation.rejections == ["queue_full"]
    assert "so is its queue" in caught.value.message

    permit.release()
    (await waiting).release()


@in_virtual_time
async def test_a_wait_that_is_too_long_ends() -> None:
    parent = Parent(slots=1, timeout_s=5)
    one, two = parent.workers
    permit = await one.enter()
    began_s = clock().now()
    with pytest.raises(Overloaded):
        await two.enter()

    assert clock().now() - began_s == pytest.approx(5, abs=0.01)
    assert (two.instrumentation.rejections, two.gate.queued, parent.slots) == (["queue_timeout"], 0, (1, 0))

    permit.release()


@in_virtual_time
async def test_a_request_that_could_never_fit_is_refused_without_a_message() -> None:
    parent = Parent(slots=2)
    with pytest.raises(ClientError) as caught:
        await parent.workers[0].gate.enter(3)

    assert caught.value.param == "n"


@pytest.mark.parametrize("after_s", [0.0, WIRE_S / 2, WIRE_S * 1.5, WIRE_S * 2, 1.0])
@in_virtual_time
async def test_a_cancelled_wait_leaves_no_trace_at_any_moment(after_s: float) -> None:
    """Also while a message is on its way."""
    for slots in (0, 1):
        parent = Parent(slots=1)
        one, two = parent.workers
        held = await one.enter() if slots == 0 else None
        task = two.enter()
        await asyncio.sleep(after_s)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(done, Permit):
            done.release()
        if held is not None:
            held.release()
        await asyncio.sleep(1)

        assert (parent.slots, two.gate.slots_taken, two.gate.queued) == ((0, 0), 0, 0)


@in_virtual_time
async def test_a_dead_worker_releases_what_it_held_and_waited_for() -> None:
    parent = Parent(slots=3)
    dead, alive = parent.workers
    await dead.enter(2)
    other = await alive.enter()
    waiting, next_one = dead.enter(), alive.enter(2)
    await asyncio.sleep(0.1)

    assert parent.slots == (3, 2)

    dead.permits.release_all()
    await asyncio.sleep(0.1)

    assert next_one.done()
    assert parent.slots == (3, 0)

    waiting.cancel()
    for permit in (other, await next_one):
        permit.release()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(1)

    assert parent.slots == (0, 0)


@in_virtual_time
async def test_an_answer_without_a_waiting_request_is_ignored() -> None:
    parent = Parent()
    parent.workers[0].gate.on_granted(PermitGranted(99))
    parent.workers[0].gate.on_refused(PermitRefused(99, "No.", "queue_full", 1))
    parent.workers[0].permits.release(ReleasePermit(99))
    await settle()

    assert parent.slots == (0, 0)
