from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.domain import Cause
from gateway.errors import ClientError
from gateway.streams.cancel_scope import CancelScope, ClientDisconnected
from tests.support.time import in_virtual_time, settle


class Walker:
    """A task that runs `body` in a scope and then records how many cancellations are left."""

    def __init__(self, body: Callable[[], Awaitable[object]]) -> None:
        self.cancel_scope = CancelScope()
        self.left_cancels: int | None = None
        self._body = body
        self.task = asyncio.get_running_loop().create_task(self._walk())

    async def _walk(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with self.cancel_scope:
                await self._body()
        finally:
            self.left_cancels = task.cancelling()
        await asyncio.sleep(0)


async def forever() -> None:
    await asyncio.Event().wait()


async def swallow() -> None:
    """What vLLM's handlers do: they answer a cancellation instead of passing it on."""
    try:
        await forever()
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize("body", [forever, swallow])
@in_virtual_time
async def test_an_ended_scope_raises_the_error_given(body: Callable[[], Awaitable[object]]) -> None:
    walker = Walker(body)
    await settle()
    walker.cancel_scope.end(ClientError("Enough."))
    with pytest.raises(ClientError, match="Enough"):
        await walker.task

    assert walker.left_cancels == 0, "the task itself was not to end"


@in_virtual_time
async def test_a_scope_that_is_not_ended_is_left_as_usual() -> None:
    async def nothing() -> None: ...

    async def fail() -> None:
        raise ClientError("My own.")

    await Walker(nothing).task
    with pytest.raises(ClientError, match="My own"):
        await Walker(fail).task


@in_virtual_time
async def test_only_the_first_pull_counts() -> None:
    walker = Walker(forever)
    await settle()
    walker.cancel_scope.end(ClientDisconnected(Cause.CLIENT_STALLED))
    walker.cancel_scope.end(ClientError("Too late."))
    with pytest.raises(ClientDisconnected) as caught:
        await walker.task

    assert caught.value.cause is Cause.CLIENT_STALLED
    assert walker.left_cancels == 0


@in_virtual_time
async def test_before_and_after_the_scope_there_is_nothing_to_end() -> None:
    cancel_scope = CancelScope()
    completed = []

    async def run() -> int:
        cancel_scope.end(ClientError("Too early."))
        with cancel_scope:
            await asyncio.sleep(0)
            completed.append("body")
        cancel_scope.end(ClientError("Too late."))
        await asyncio.sleep(0)
        completed.append("rest")
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await asyncio.create_task(run()) == 0
    assert completed == ["body", "rest"]


@in_virtual_time
async def test_news_and_the_pull_in_one_turn_end_the_scope() -> None:
    """What the body waits for has come, but it has not run yet."""
    event = asyncio.Event()
    walker = Walker(event.wait)
    await settle()
    event.set()
    walker.cancel_scope.end(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await walker.task

    assert walker.left_cancels == 0


@pytest.mark.parametrize("first", ["server", "scope"])
@in_virtual_time
async def test_a_cancellation_of_the_task_itself_goes_first(first: str) -> None:
    """uvicorn cancels its tasks at a forced shutdown; that must not be taken for a client that left."""
    walker = Walker(forever)
    await settle()
    if first == "server":
        walker.task.cancel()
    walker.cancel_scope.end(ClientDisconnected())
    walker.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walker.task


@in_virtual_time
async def test_the_scopes_own_error_during_its_end_is_let_out() -> None:
    async def fail_late() -> None:
        try:
            await forever()
        finally:
            raise ClientError("While tidying up.")

    walker = Walker(fail_late)
    await settle()
    walker.cancel_scope.end(ClientDisconnected())
    with pytest.raises(ClientError, match="tidying"):
        await walker.task

    assert walker.left_cancels == 0


@in_virtual_time
async def test_a_task_that_was_cancelled_before_and_went_on_can_enter_a_scope() -> None:
    cancel_scope = CancelScope()

    async def walk() -> None:
        await swallow()
        with cancel_scope:
            await forever()

    task = asyncio.get_running_loop().create_task(walk())
    await settle()
    task.cancel()
    await settle()
    cancel_scope.end(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await task


@in_virtual_time
async def test_scopes_can_be_nested_and_each_ends_by_itself() -> None:
    inner, outer = CancelScope(), CancelScope()
    ended: list[str] = []

    async def walk() -> None:
        with outer:
            try:
                with inner:
                    await forever()
            except ClientError:
                ended.append("inner")
            await forever()

    task = asyncio.get_running_loop().create_task(walk())
    await settle()
    inner.end(ClientError("Inner."))
    await settle()
    outer.end(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await task

    assert ended == ["inner"]
