"""The permits of one worker at the real gate; `worker/test_gate.py` has the two ends together."""

from __future__ import annotations

from gateway.admission.gate import Gate
from gateway.multiprocess.messages import AcquirePermit, ParentMessage, PermitGranted, PermitRefused, ReleasePermit
from gateway.multiprocess.parent.permit_server import NullGateMetrics, PermitServer
from tests.support.time import clock, in_virtual_time, settle


class Server:
    def __init__(self) -> None:
        self.gate = Gate(
            max_concurrent=2, max_waiting=1, queue_timeout_s=60, clock=clock(), instrumentation=NullGateMetrics()
        )
        self.sent: list[ParentMessage] = []
        self.permits = PermitServer(self.gate, self.sent.append)

    @property
    def at_gate(self) -> tuple[int, int]:
        return self.gate.slots_taken, self.gate.queued


@in_virtual_time
async def test_permits_are_granted_in_the_order_of_their_messages() -> None:
    server = Server()
    for permit_id, slots in ((7, 2), (8, 1)):
        server.permits.acquire(AcquirePermit(permit_id, slots))
    await settle()

    assert (server.sent, server.at_gate) == ([PermitGranted(7)], (2, 1))

    server.permits.release(ReleasePermit(7))
    await settle()

    assert (server.sent, server.at_gate) == ([PermitGranted(7), PermitGranted(8)], (1, 0))

    server.permits.release_all()

    assert server.at_gate == (0, 0)


@in_virtual_time
async def test_a_full_queue_is_a_refusal_with_its_reason() -> None:
    server = Server()
    for permit_id in (1, 2, 3):
        server.permits.acquire(AcquirePermit(permit_id, 2))
    await settle()
    refused = server.sent[-1]

    assert isinstance(refused, PermitRefused)
    assert (refused.permit_id, refused.reason) == (3, "queue_full")
    assert refused.retry_after_s >= 1

    server.permits.release_all()


@in_virtual_time
async def test_a_release_frees_a_place_in_the_queue_and_does_nothing_for_an_unknown_permit() -> None:
    server = Server()
    for permit_id in (1, 2):
        server.permits.acquire(AcquirePermit(permit_id, 2))
    await settle()
    for permit_id in (2, 99):
        server.permits.release(ReleasePermit(permit_id))
    await settle()

    assert (server.sent, server.at_gate) == ([PermitGranted(1)], (2, 0))

    server.permits.release(ReleasePermit(1))


@in_virtual_time
async def test_the_end_of_a_worker_frees_what_it_held_and_waited_for() -> None:
    server = Server()
    for permit_id in (1, 2):
        server.permits.acquire(AcquirePermit(permit_id, 2))
    await settle()
    server.permits.release_all()
    await settle()

    assert (server.sent, server.at_gate) == ([PermitGranted(1)], (0, 0))
