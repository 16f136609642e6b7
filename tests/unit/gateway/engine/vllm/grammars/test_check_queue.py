"""The order of checks, in virtual time, with a process that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.engine.vllm.grammars.check_queue import CheckQueue, OnDocument
from gateway.engine.vllm.grammars.check_results import CheckResult
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.errors import Overloaded
from tests.support.time import clock, in_virtual_time, settle


class Machine:
    """A queue, and the process that the test plays."""

    def __init__(self, processes: int = 2, *, start_takes_s: float = 0.0) -> None:
        self.sent: list[Mapping[str, Any]] = []
        self.starts = 0
        self.closed = 0
        self.start_takes_s = start_takes_s
        self.start_error: Exception | None = None
        limits = GrammarLimits(timeout_s=4, processes=processes)
        self.queue = CheckQueue(limits, clock(), start=self._start, vocabulary=self._vocabulary)

    async def _start(self, on_document: OnDocument) -> Machine:
        self.starts += 1
        await asyncio.sleep(self.start_takes_s)
        if self.start_error is not None:
            raise self.start_error
        self.on_document = on_document
        return self

    async def _vocabulary(self) -> dict[str, Any]:
        return {"tokens": {}, "eos": 0}

    def send(self, document: Mapping[str, Any]) -> None:
        self.sent.append(document)

    def close(self) -> None:
        self.closed += 1

    def check(self, regex: str, client: str = "a") -> asyncio.Task[CheckResult]:
        return asyncio.get_running_loop().create_task(self.queue.check({"regex": regex}, client, regex.encode()))

    @property
    def started(self) -> list[str]:
        """The expressions that have been sent to the process, in order."""
        return [document["constraint"]["regex"] for document in self.sent if "constraint" in document]

    def answer(self, regex: str, outcome: str = "good", **more: Any) -> None:
        """Send the outcome of that expression."""
        name = [d["id"] for d in self.sent if d.get("constraint") == {"regex": regex}][-1]
        self.on_document({"id": name, "outcome": outcome, "backend": "xgrammar", **more})


@in_virtual_time
async def test_a_grammar_is_checked_once_for_all_requests_with_it() -> None:
    machine = Machine()
    first, second = machine.check("x"), machine.check("x", "b")
    await settle()
    machine.answer("x")

    assert await first == await second == CheckResult("xgrammar")
    assert await machine.check("x", "c") == await first
    assert (machine.started, machine.starts, len(machine.queue._checks)) == (["x"], 1, 0)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"outcome": "slow"}, "takes longer than 4 s to compile (grammars.timeout_s)"),
        ({"outcome": "bad", "message": "It has no end."}, "cannot be compiled: It has no end."),
    ],
)
@in_virtual_time
async def test_a_refusal_has_a_reason_and_is_cached(outcome: dict[str, Any], words: str) -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    machine.answer("x", **outcome)

    assert (await task).backend is None
    assert (await task).message == words
    assert await machine.check("x") == await task
    assert machine.started == ["x"]


@in_virtual_time
async def test_a_late_check_is_refused_but_not_cached() -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    machine.answer("x", "late")

    assert "takes longer" in (await task).message

    again = machine.check("x")
    await settle()
    machine.answer("x")

    assert (await again).backend == "xgrammar"


@in_virtual_time
async def test_a_check_without_waiters_is_cancelled() -> None:
    machine = Machine(processes=1)
    first, second, behind = machine.check("x"), machine.check("x"), machine.check("y")
    await settle()
    first.cancel()
    await settle()

    assert machine.started == ["x"]

    second.cancel()
    await settle()

    assert machine.sent[1:] == [{"cancel": 1}, {"id": 2, "constraint": {"regex": "y"}}]

    behind.cancel()
    await settle()

    assert not machine.queue._checks


@in_virtual_time
async def test_a_waiting_check_without_waiters_is_never_started() -> None:
    machine = Machine(processes=1)
    task, waiting = machine.check("x"), machine.check("y")
    await settle()
    waiting.cancel()
    await settle()
    machine.answer("x")
    await task

    assert machine.started == ["x"]


@in_virtual_time
async def test_clients_take_turns() -> None:
    machine = Machine(processes=1)
    tasks = [machine.check(f"a{i}") for i in range(4)] + [machine.check(f"{name}0", name) for name in "bc"]
    await settle()
    for _ in range(6):
        machine.answer(machine.started[-1])
        await settle()

    assert machine.started == ["a0", "b0", "c0", "a1", "a2", "a3"]
    assert all(task.done() for task in tasks)


@in_virtual_time
async def test_the_oldest_check_ends_when_all_processes_are_in_use() -> None:
    machine = Machine(processes=2)
    bad = [machine.check("bad0"), machine.check("bad1")]
    await settle()
    await asyncio.sleep(0.5)
    innocent = machine.check("innocent", "b")
    await settle()

    assert "innocent" not in machine.started

    await asyncio.sleep(0.6)

    assert machine.started == ["bad0", "bad1", "innocent"]
    assert {"cancel": 1} in machine.sent
    with pytest.raises(Overloaded, match="others are waiting"):
        await bad[0]
    machine.answer("innocent")
    assert (await innocent).backend == "xgrammar"
    assert not bad[1].done()
    bad[1].cancel()


@in_virtual_time
async def test_a_check_without_cpu_time_is_not_a_refusal() -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    machine.answer("x", "starved")

    with pytest.raises(Overloaded):
        await task
    assert len(machine.queue.results) == 0


@in_virtual_time
async def test_a_silent_process_does_not_hold_a_request_for_ever() -> None:
    machine = Machine()
    began_s = clock().now()
    task = machine.check("x")
    with pytest.raises(Overloaded):
        await task

    assert clock().now() - began_s <= 24
    assert machine.sent[-1] == {"cancel": 1}


@in_virtual_time
async def test_the_wait_for_a_starting_process_is_bounded() -> None:
    machine = Machine(start_takes_s=30)
    with pytest.raises(Overloaded, match="starting"):
        await machine.check("x")

    # The process still starts, for the next grammar.
    await asyncio.sleep(15)
    task = machine.check("y")
    await settle()
    machine.answer("y")

    assert ((await task).backend, machine.starts) == ("xgrammar", 1)


@in_virtual_time
async def test_a_process_that_ends_is_replaced_and_only_its_running_checks_fail() -> None:
    machine = Machine(processes=1)
    running, waiting = machine.check("x"), machine.check("y")
    await settle()
    machine.on_document(None)
    with pytest.raises(Overloaded):
        await running
    await settle()
    machine.answer("y")

    assert ((await waiting).backend, machine.starts) == ("xgrammar", 2)


@in_virtual_time
async def test_a_process_that_cannot_start_is_started_again_for_the_next_grammar() -> None:
    machine = Machine()
    machine.start_error = OSError("no memory")
    with pytest.raises(Overloaded):
        await machine.check("x")
    machine.start_error = None
    task = machine.check("x")
    await settle()
    machine.answer("x")

    assert ((await task).backend, machine.starts) == ("xgrammar", 2)


@in_virtual_time
async def test_the_vocabulary_is_sent_when_a_grammar_needs_it() -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    machine.answer("x", "vocabulary")
    await settle()

    assert machine.sent[1:] == [{"vocabulary": {"tokens": {}, "eos": 0}}, {"id": 1, "constraint": {"regex": "x"}}]

    machine.answer("x")

    assert (await task).backend == "xgrammar"


@in_virtual_time
async def test_closing_ends_the_process_and_all_waits() -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    await machine.queue.close()

    assert (task.cancelled(), machine.closed) == (False, 1)
    with pytest.raises(asyncio.CancelledError):
        await task
