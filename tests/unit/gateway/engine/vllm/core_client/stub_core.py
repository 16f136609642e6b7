"""Stand-ins for vLLM's client of an engine and its output processor, and a restartable client over them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tests.support.time import clock, settle
from tests.unit.gateway.engine.vllm.core_client.test_replay import a_request
from tests.unit.gateway.engine.vllm.stub_vllm import Died


class Process:
    def __init__(self) -> None:
        self.acts: list[str] = []
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.acts.append("kill")

    def join(self, timeout_s: float) -> None:
        self.acts.append(f"join {timeout_s:g}")


class Core:
    """vLLM's client of one engine process."""

    def __init__(self) -> None:
        self.process = Process()
        self.resources = SimpleNamespace(
            engine_dead=False,
            engine_manager=SimpleNamespace(processes=[self.process]),
            # It receives already.
            output_queue_task="a task",
        )
        self.utility_results: dict[int, asyncio.Future[Any]] = {}
        self.outputs: asyncio.Queue[Any] = asyncio.Queue()
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.added: list[Any] = []
        self.aborted: list[str] = []
        self.adding: asyncio.Event | None = None
        self.dead = False
        self.paused_after_s = 0.0
        self.other = "any attribute that AsyncLLM reads"

    async def get_output_async(self) -> Any:
        got = await self.outputs.get()
        if isinstance(got, Exception):
            raise got
        return got

    async def add_request_async(self, request: Any) -> None:
        if self.dead:
            raise Died
        if self.adding is not None:
            await self.adding.wait()
        self.added.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    async def is_scheduler_paused_async(self) -> bool:
        await asyncio.sleep(self.paused_after_s)
        if self.dead:
            raise Died
        return False

    def shutdown(self, timeout: float) -> None:
        self.process.acts.append(f"shutdown {timeout:g}")


class OutputProcessor:
    """As much of vLLM's as is used: states by internal id."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.aborted: list[tuple[list[str], bool]] = []

    def add(self, name: str, tokens: list[int] | None, parent: Any = None) -> list[Any]:
        """A request of which these tokens have been received; gives its queue. None: one without a detokenizer."""
        received: list[Any] = []
        self.request_states[name] = SimpleNamespace(
            detokenizer=None if tokens is None else SimpleNamespace(output_token_ids=tokens),
            parent_req=parent,
            queue=SimpleNamespace(put=received.append),
        )
        return received

    def abort_requests(self, names: list[str], internal: bool) -> None:
        self.aborted.append((names, internal))
        for name in names:
            state = self.request_states.pop(name, None)
            if state is not None:
                state.queue.put("the abort's own word")
        for name, state in list(self.request_states.items()):
            if state.parent_req is not None and state.parent_req.request_id in names:
                del self.request_states[name]
                state.queue.put("the abort's own word")


class Bench:
    def __init__(self, core: Any) -> None:
        self.first, self.second = Core(), Core()
        self.processor = OutputProcessor()
        self.core = core.RestartableCoreClient(self.first, self.processor, clock())

    async def add(self, name: str, tokens: list[int] | None, parent: Any = None, **changes: Any) -> list[Any]:
        received = self.processor.add(name, tokens, parent)
        await self.core.add_request_async(a_request(request_id=name, **changes))
        return received


def outputs(*finished: tuple[str, str | None]) -> Any:
    return SimpleNamespace(
        outputs=[SimpleNamespace(request_id=name, finish_reason=reason, events=None) for name, reason in finished]
    )


class Dying(Bench):
    """Engines one after the other; each generates the tokens that the test gives it."""

    def __init__(self, core: Any) -> None:
        super().__init__(core)
        self.engine = self.first

    async def generate(self, *names: str) -> None:
        """A token for each of these."""
        for name in names:
            self.processor.request_states[name].detokenizer.output_token_ids.append(7)
        await asyncio.sleep(0.1)

    async def die(self, *, last: bool = False) -> Any:
        """The engine dies and is replaced."""
        self.core.mark_lost()
        await self.core.find_culprit()
        self.engine = Core()
        recovery = await self.core.replace(self.engine, last=last)
        await settle()
        return recovery

    @property
    def sent(self) -> list[str]:
        """What the engine of the day has been sent."""
        return [request.request_id for request in self.engine.added]
