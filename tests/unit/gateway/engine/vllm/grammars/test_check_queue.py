"""Who has which grammar checked next, in virtual time and with a process that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.engine.vllm.grammars.check_queue import Checker, OnDocument
from gateway.engine.vllm.grammars.check_results import Verdict
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.errors import Overloaded
from tests.support.time import clock, in_virtual_time, settle


class Machine:
    """A checker, and the process as the test plays it."""

    def __init__(self, processes: int = 2, *, start_takes_s: float = 0.0) -> None:
        self.sent: list[Mapping[str, Any]] = []
        self.starts = 0
        self.closed = 0
        self.start_takes_s = start_takes_s
        self.start_error: Exception | None = None
        limits = GrammarLimits(timeout_s=4, processes=processes)
        self.checker = Checker(limits, clock(), start=self._start, vocabulary=self._vocabulary)

    async def _start(self, on_document: OnDocument) -> Machine:
        self.starts += 1
        await asyncio.sleep(self.start_takes_s)
        if self.start_error is not None:
            raise self.start_error
        self.say = on_document
        return self

    async def _vocabulary(self) -> dict[str, Any]:
        return {"tokens": {}, "eos": 0}

    def send(self, document: Mapping[str, Any]) -> None:
        self.sent.append(document)

    def close(self) -> None:
        self.closed += 1

    def check(self, regex: str, client: str = "a") -> asyncio.Task[Verdict]:
        return asyncio.get_running_loop().create_task(self.checker.check({"regex": regex}, client, regex.encode()))

    @property
    def begun(self) -> list[str]:
        """The expressions that have been given to the process, in order."""
        return [document["constraint"]["regex"] for document in self.sent if "constraint" in document]

    def answer(self, regex: str, outcome: str = "good", **more: Any) -> None:
        """The process is done with that expression."""
        name = [d["id"] for d in self.sent if d.get("constraint") == {"regex": regex}][-1]
        self.say({"id": name, "outcome": outcome, "backend": "xgrammar", "cpu_s": 0.1, **more})


@in_virtual_time
async def test_a_grammar_is_checked_once_for_all_who_send_it() -> None:
    machine = Machine()
    first, second = machine.check("x"), machine.check("x", "b")
    await settle()
    machine.answer("x")

    assert await first == await second == Verdict("xgrammar", cpu_s=0.1)
    assert await machine.check("x", "c") == await first
    assert (machine.begun, machine.starts, machine.checker.busy) == (["x"], 1, 0)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"outcome": "slow"}, "takes longer than 4 s to compile (grammars.timeout_s)"),
        ({"outcome": "bad", "message": "It has no end."}, "cannot be compiled: It has no end."),
    ],
)
@in_virtual_time
async def test_a_refusal_says_why_and_is_remembered(outcome: dict[str, Any], words: str) -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    machine.answer("x", **outcome)

    assert (await task).backend is None
    assert (await task).message == words
    assert await machine.check("x") == await task
    assert machine.begun == ["x"]


@in_virtual_time
async def test_what_was_late_on_the_clock_is_refused_but_not_remembered() -> None:
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
async def test_the_process_is_told_when_nobody_waits_any_more() -> None:
    machine = Machine(processes=1)
    first, second, behind = machine.check("x"), machine.check("x"), machine.check("y")
    await settle()
    first.cancel()
    await settle()

    assert machine.begun == ["x"]

    second.cancel()
    await settle()

    assert machine.sent[1:] == [{"cancel": 1}, {"id": 2, "constraint": {"regex": "y"}}]

    behind.cancel()
    await settle()

    assert machine.checker.busy == 0


@in_virtual_time
async def test_one_who_waits_and_leaves_is_never_begun() -> None:
    machine = Machine(processes=1)
    task, waiting = machine.check("x"), machine.check("y")
    await settle()
    waiting.cancel()
    await settle()
    machine.answer("x")
    await task

    assert machine.begun == ["x"]


@in_virtual_time
async def test_clients_take_turns() -> None:
    machine = Machine(processes=1)
    tasks = [machine.check(f"a{i}") for i in range(4)] + [machine.check(f"{name}0", name) for name in "bc"]
    await settle()
    for _ in range(6):
        machine.answer(machine.begun[-1])
        await settle()

    assert machine.begun == ["a0", "b0", "c0", "a1", "a2", "a3"]
    assert all(task.done() for task in tasks)


@in_virtual_time
async def test_where_all_processes_are_taken_the_oldest_makes_place() -> None:
    machine = Machine(processes=2)
    bad = [machine.check("bad0"), machine.check("bad1")]
    await settle()
    await asyncio.sleep(0.5)
    innocent = machine.check("innocent", "b")
    await settle()

    assert "innocent" not in machine.begun

    await asyncio.sleep(0.6)

    assert machine.begun == ["bad0", "bad1", "innocent"]
    assert {"cancel": 1} in machine.sent
    with pytest.raises(Overloaded, match="others are waiting"):
        await bad[0]
    machine.answer("innocent")
    assert (await innocent).backend == "xgrammar"
    assert not bad[1].done()
    bad[1].cancel()


@in_virtual_time
async def test_a_machine_that_is_too_busy_is_not_the_grammars_fault() -> None:
    machine = Machine()
    task = machine.check("x")
    await settle()
    machine.answer("x", "starved")

    with pytest.raises(Overloaded):
        await task
    assert len(machine.checker.verdicts) == 0


@in_virtual_time
async def test_a_process_that_says_nothing_does_not_hold_a_request_for_ever() -> None:
    machine = Machine()
    began_s = clock().now()
    task = machine.check("x")
    with pytest.raises(Overloaded):
        await task

    assert clock().now() - began_s <= 24
    assert machine.sent[-1] == {"cancel": 1}


@in_virtual_time
async def test_a_process_that_is_still_starting_is_not_waited_for_too_long() -> None:
    machine = Machine(start_takes_s=30)
    with pytest.raises(Overloaded, match="starting"):
        await machine.check("x")

    # It goes on starting, for the next one.
    await asyncio.sleep(15)
    task = machine.check("y")
    await settle()
    machine.answer("y")

    assert ((await task).backend, machine.starts) == ("xgrammar", 1)


@in_virtual_time
async def test_a_process_that_dies_is_replaced_and_takes_only_its_own_work_along() -> None:
    machine = Machine(processes=1)
    running, waiting = machine.check("x"), machine.check("y")
    await settle()
    machine.say(None)
    with pytest.raises(Overloaded):
        await running
    await settle()
    machine.answer("y")

    assert ((await waiting).backend, machine.starts) == ("xgrammar", 2)


@in_virtual_time
async def test_a_process_that_cannot_start_is_tried_again_with_the_next_grammar() -> None:
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
    await machine.checker.close()

    assert (task.cancelled(), machine.closed) == (False, 1)
    with pytest.raises(asyncio.CancelledError):
        await task
