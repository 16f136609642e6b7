from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.app import Sluice, versions
from gateway.domain import AppOptions
from gateway.engine.base import Engine, RecoveryReport, Route
from gateway.engine.supervisor import Phase
from gateway.errors import SettingsError
from gateway.metrics import Metrics
from gateway.process_context import ProcessContext, SingleProcess
from gateway.settings import Settings
from gateway.settings_sections import Admission, Log, Server, Streams, Supervision
from tests.support.asgi import Client
from tests.support.engine import ScriptedEngine
from tests.support.harness import CHAT
from tests.support.time import clock, in_virtual_time, settle


class Process:
    """An app, and the lifespan part of the server around it."""

    def __init__(
        self,
        launch: Callable[[], Awaitable[ScriptedEngine]],
        max_restarts: int = 3,
        context: ProcessContext | None = None,
        **server: Any,
    ) -> None:
        self.registry = CollectorRegistry()
        self.reports: list[Any] = []
        settings = Settings.model_construct(
            server=Server(**server),
            admission=Admission(max_concurrent=1, max_waiting=0),
            streams=Streams(keepalive_s=10, max_grace_s=50),
            supervisor=Supervision(max_restarts=max_restarts, window_s=100),
            log=Log(),
            engine={},
        )
        self.sluice = Sluice(
            settings,
            launch=launch,
            clock=clock(),
            metrics=Metrics("0.1.0", self.registry),
            on_ready=lambda: self.reports.append("ready"),
            on_failure=self.reports.append,
            context=context,
        )
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[str] = []

    async def start(self) -> None:
        async def send(message: Any) -> None:
            self.sent.append(message["type"])

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._life = asyncio.get_running_loop().create_task(self.sluice.asgi(scope, self._inbox.get, send))
        await self._inbox.put({"type": "lifespan.startup"})
        await settle()

    async def stop(self) -> None:
        await self._inbox.put({"type": "lifespan.shutdown"})
        await self._life

    def client(self, method: str, path: str, body: bytes = b"", **options: Any) -> Client:
        return Client(self.sluice.asgi, method, path, body=body, **options)

    def number(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


async def start(engine: ScriptedEngine, **options: Any) -> Process:
    """A process whose engine is up."""

    async def launch() -> ScriptedEngine:
        return engine

    process = Process(launch, **options)
    await process.start()
    return process


@in_virtual_time
async def test_the_server_answers_while_its_engine_starts_and_serves_when_it_is_up() -> None:
    engine = ScriptedEngine()

    async def launch() -> ScriptedEngine:
        await asyncio.sleep(20)
        return engine

    process = Process(launch)
    await process.start()

    assert process.sent == ["lifespan.startup.complete"], "the socket does not wait for the engine"
    assert (await process.client("GET", "/readyz").finish()).status == 503
    assert (await process.client("GET", "/livez").finish()).status == 200
    assert process.number("sluice_ready") == 0
    assert process.sluice.supervisor.is_launching

    await asyncio.sleep(21)

    assert process.reports == ["ready"]
    assert process.number("sluice_ready") == 1
    assert process.number("sluice_seats") == 1
    assert (await process.client("GET", "/readyz").finish()).status == 200
    assert process.sluice.model == "scripted"

    stream = process.client("POST", CHAT, b'{"stream": true}')
    await settle()

    assert process.number("sluice_streams_active") == 1

    engine.runs[0].end("hello")
    await stream.finish()

    assert stream.events()[-1] == "[DONE]"
    assert process.number("sluice_streams_active") == 0

    await process.stop()

    assert engine.stops == 1


@in_virtual_time
async def test_an_engine_that_dies_once_too_often_is_reported_to_the_process() -> None:
    engine = ScriptedEngine()
    process = await start(engine, max_restarts=0)
    engine.death.set()
    await settle()

    assert [str(report).partition(",")[0] for report in process.reports] == ["ready", "The engine died"]
    assert process.reports[1].exit_code == 1
    assert (await process.client("GET", "/livez").finish()).status == 503

    await process.stop()


@in_virtual_time
async def test_a_stream_outlives_the_engine_that_began_it() -> None:
    engine = ScriptedEngine()
    engine.restart_takes_s, engine.recovery = (
        25,
        RecoveryReport(continued=1, failed={"its grammar would start anew": 2}),
    )
    process = await start(engine)
    stream = process.client("POST", CHAT, b'{"stream": true}')
    await settle()
    engine.runs[0].put_text("be")
    await settle()
    engine.death.set()
    await settle()

    assert (await process.client("GET", "/readyz").finish()).status == 503
    assert (await process.client("GET", "/livez").finish()).status == 200, "a restart is no reason to kill the process"
    assert process.sluice.supervisor.is_launching is True

    await asyncio.sleep(26)
    engine.runs[0].end("gin")
    await stream.finish()

    assert stream.comments == 2
    assert stream.events()[-1] == "[DONE]"
    assert (await process.client("GET", "/readyz").finish()).status == 200
    assert process.number("sluice_engine_restarts_total") == 1
    assert process.number("sluice_streams_recovered_total", result="continued") == 1
    assert process.number("sluice_streams_recovered_total", result="failed") == 2
    assert process.number("sluice_ended_total", cause="completed") == 1
    assert process.reports == ["ready"]

    await process.stop()


@in_virtual_time
async def test_the_options_of_the_engines_app_hold_while_it_is_restarted() -> None:
    engine = ScriptedEngine(options=AppOptions(root_path="/llm"), restart_takes_s=20)
    process = await start(engine)
    await settle()
    engine.death.set()
    await asyncio.sleep(5)

    assert (await process.client("GET", "/readyz").finish()).status == 503

    document = (await process.client("GET", "/llm/openapi.json").finish()).json()

    assert "/v1/embeddings" in document["paths"]
    assert document["servers"] == [{"url": "/llm"}]
    assert (await process.client("GET", "/llm/v1/models").finish()).status == 503

    await asyncio.sleep(20)
    await process.stop()


@in_virtual_time
async def test_kept_events_of_resumable_streams_are_shown_and_bounded_by_the_settings() -> None:
    engine = ScriptedEngine()
    process = await start(engine)
    stream = process.client("POST", CHAT, b'{"stream": true}', headers={"X-Stream-Resumable": "1000"})
    await settle()
    engine.runs[0].end("all")
    await stream.finish()
    back = await process.client("GET", f"/v1/streams/{engine.runs[0].id}").finish()

    assert stream.headers["x-stream-resumable"] == "50"
    assert back.body == stream.body
    assert (process.number("sluice_kept_bytes") or 0) > 0
    assert process.number("sluice_stream_resumes_total", result="ok") == 1

    await process.stop()


@in_virtual_time
async def test_a_process_that_drains_is_not_ready_but_alive_and_ends_the_rest_at_its_deadline() -> None:
    engine = ScriptedEngine()
    process = await start(engine)
    stream = process.client("POST", CHAT, b'{"stream": true}')
    await settle()
    engine.runs[0].put_text("a")
    await settle()
    drain = asyncio.get_running_loop().create_task(process.sluice.registry.drain(20))
    await settle()
    ready = await process.client("GET", "/readyz").finish()

    assert (ready.status, ready.json()["status"]) == (503, "server_draining")
    assert process.number("sluice_ready") == 0
    assert (await process.client("GET", "/livez").finish()).status == 200
    assert (await process.client("GET", "/version").finish()).headers["connection"] == "close"

    await drain
    await stream.finish()

    assert stream.events()[-2]["error"]["code"] == "server_draining"
    assert process.number("sluice_ended_total", cause="server_draining") == 1

    await process.stop()


@in_virtual_time
async def test_everything_can_be_ended_now() -> None:
    engine = ScriptedEngine()
    process = await start(engine)
    stream = process.client("POST", CHAT, b'{"stream": true}')
    await settle()
    process.sluice.registry.end_all()
    await stream.finish()

    assert (stream.status, stream.error()["code"]) == (500, "server_draining")

    await process.stop()


@in_virtual_time
async def test_the_engine_decides_whether_the_model_answers_chats() -> None:
    engine = ScriptedEngine()
    process = await start(engine)

    assert not process.sluice.has_chat

    engine.routes = {("POST", CHAT): Route.USES_ENGINE}

    assert process.sluice.has_chat

    await process.stop()


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [(SettingsError("No such model."), "No such model.", 2), (RuntimeError("why"), "The engine failed.", 1)],
)
@in_virtual_time
async def test_an_engine_that_cannot_start_is_reported_to_the_process(error: Exception, words: str, code: int) -> None:
    async def launch() -> ScriptedEngine:
        raise error

    process = Process(launch)
    await process.start()

    assert [(str(error), error.exit_code) for error in process.reports] == [(words, code)]

    await process.stop()


@in_virtual_time
async def test_a_process_that_stops_while_its_engine_starts_stops_at_once() -> None:
    async def launch() -> ScriptedEngine:
        await asyncio.sleep(1000)
        raise AssertionError

    process = Process(launch)
    await process.start()
    began = clock().now()
    await process.stop()

    assert clock().now() - began < 1
    assert process.sluice.supervisor.phase is Phase.STOPPED
    assert process.reports == []


@in_virtual_time
async def test_a_bad_keys_file_is_found_before_anything_starts(tmp_path: Path) -> None:
    async def launch() -> ScriptedEngine:
        raise AssertionError

    with pytest.raises(SettingsError, match="api_keys_file"):
        Process(launch, api_keys_file=tmp_path / "missing")


class Recording(SingleProcess):
    """A process that restarts its engine without a limit, and has half of everything."""

    def __init__(self) -> None:
        self.served: list[tuple[str, bool, int]] = []

    def max_restarts(self, configured: int) -> int | None:
        return None

    def new_id(self) -> str:
        return f"mine{super().new_id()}"

    def share_of(self, total: int) -> int:
        return total // 2

    def wrap(self, app: Any, **_: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            await app(
                {**scope, "path": scope["path"].removeprefix("/wrapped")} if "path" in scope else scope, receive, send
            )

        return wrapped

    async def collect_metrics(self, render_metrics: Callable[[], bytes]) -> bytes:
        return b"# of all\n" + render_metrics()

    def on_serving(self, engine: Engine, *, has_chat: bool, recovery: RecoveryReport) -> None:
        self.served.append((engine.model, has_chat, recovery.continued))


@in_virtual_time
async def test_the_process_context_decides_what_differs_between_processes() -> None:
    engine = ScriptedEngine()
    engine.recovery = RecoveryReport(continued=1, failed={})
    context = Recording()
    process = await start(engine, max_restarts=0, context=context)

    assert context.served == [("scripted", False, 0)]

    stream = process.client("POST", CHAT, b'{"stream": true}')
    await settle()
    engine.death.set()
    await settle()

    assert context.served == [("scripted", False, 0), ("scripted", False, 1)]

    engine.runs[0].end("hello")
    await stream.finish()

    assert stream.headers["x-stream-id"].startswith("chatcmpl-mine")

    metrics = await process.client("GET", "/wrapped/metrics").finish()

    assert metrics.body.startswith(b"# of all\n")
    assert b"sluice_ready 1.0" in metrics.body

    await process.stop()


def test_both_versions_are_known() -> None:
    assert set(versions()) == {"sluice", "vllm"}
