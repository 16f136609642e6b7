"""Routes requests and connects the parts: from a request to its stream, and from the streams to the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from random import Random
from time import perf_counter_ns

import orjson

from loadtest.mock import request_body
from loadtest.mock.connection import Connection
from loadtest.mock.engine import Engine
from loadtest.mock.faults import Fault, FaultKind
from loadtest.mock.ground_truth import Lateness, TrueRecord
from loadtest.mock.json_response import JsonResponse
from loadtest.mock.metrics import MockMetrics
from loadtest.mock.openai_chunks import ChunkBuilder, error_body
from loadtest.mock.plan import Freeze, MockPlan
from loadtest.mock.request_body import InvalidRequest, RequestBody
from loadtest.mock.script import FOREVER_NS, StreamTiming, make_actions
from loadtest.mock.slots import Slots
from loadtest.mock.stream import Job, Stream
from loadtest.scenario.distributions import Distribution

# The number of finished resumable streams that can still be joined.
RESUMABLE_KEPT = 4096
_STATUS = {FaultKind.HTTP_400: 400, FaultKind.HTTP_429: 429, FaultKind.HTTP_500: 500, FaultKind.HTTP_503: 503}


class App:
    def __init__(self, plan: MockPlan, loop: asyncio.AbstractEventLoop) -> None:
        self.records: list[TrueRecord] = []
        self.lateness = Lateness()
        self._plan = plan
        rng = plan.make_rng("engine")
        step_ns = _ns(plan.itl_ms, rng) if plan.steps else None
        self._engine = Engine(loop, step_ns, self.lateness)
        self._metrics = MockMetrics(plan.model, plan.kv_tokens)
        self._slots = Slots(plan.max_running, self._on_slot)
        self._accept_delay_s = partial(plan.accept_delay_s.sample, rng)
        self._resumable: dict[str, Stream] = {}
        self._freezes_scheduled = False

    def make_connection(self) -> Connection:
        """For the event loop, one for each client."""
        return Connection(self, self._accept_delay_s)

    def close(self) -> None:
        self._engine.close()

    # Called by connections.

    def on_request(self, connection: Connection, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        match method, path:
            case "POST", "/v1/chat/completions":
                self._generate(connection, True, headers, body)
            case "POST", "/v1/completions":
                self._generate(connection, False, headers, body)
            case "GET", "/metrics":
                connection.answer(200, self._metrics.exposition(self._slots), kind=b"text/plain; version=0.0.4")
            case "GET", "/v1/models":
                model = {"id": self._plan.model, "object": "model", "created": 0, "owned_by": "vllm"}
                connection.answer(200, orjson.dumps({"object": "list", "data": [model]}))
            case "GET", "/health" | "/livez" | "/readyz":
                connection.answer(200, b"{}")
            case "GET", _ if path.startswith("/v1/streams/"):
                self._resume(connection, path.removeprefix("/v1/streams/"), headers)
            case _:
                _send_error(connection, 404, f"There is no {method} {path} here.")

    def on_disconnect(self, connection: Connection) -> None:
        job, connection.job = connection.job, None
        if job is None or job.on_reader_left(connection):
            return
        if job.record.fault == FaultKind.LEAK:
            job.abandon()
        else:
            job.end("left")

    # Requests for tokens.

    def _generate(self, connection: Connection, chat: bool, headers: dict[str, str], body: bytes) -> None:
        self._schedule_freezes(connection.arrived_ns)
        rng = self._plan.make_rng(len(self.records))
        stream_id = f"{'chatcmpl' if chat else 'cmpl'}-{rng.getrandbits(128):032x}"
        request_id = headers.get("x-request-id") or f"mock-{len(self.records)}"
        record = TrueRecord(stream_id, request_id, False, None, connection.arrived_ns)
        self.records.append(record)
        try:
            request = request_body.parse_request(chat, headers, body)
        except InvalidRequest as error:
            record.status, record.end = error.status, "refused"
            _send_error(connection, error.status, str(error), error.param)
            return
        fault = request.fault or self._plan.choose_fault(rng)
        record.stream, record.fault = request.stream, None if fault is None else fault.kind
        if fault is not None and (status := _STATUS.get(fault.kind)) is not None:
            record.status, record.end = status, "refused"
            _send_planned_error(connection, status, fault)
            return
        if fault is not None and fault.kind is FaultKind.SILENCE:
            return
        head = f"x-stream-id: {stream_id}\r\nx-request-id: {request_id}\r\n".encode("latin-1")
        self._start(connection, request, fault, record, rng, head)

    def _start(
        self,
        connection: Connection,
        request: RequestBody,
        fault: Fault | None,
        record: TrueRecord,
        rng: Random,
        head: bytes,
    ) -> None:
        plan = self._plan
        chunks = ChunkBuilder(request, record.id, plan.model, int(time.time()))
        ttft_ns, itl_ns = _ns(plan.ttft_ms, rng)(), _ns(plan.itl_ms, rng)
        timing = StreamTiming(
            ttft_ns=ttft_ns,
            itl_ns=(lambda: 0) if plan.steps and request.stream else itl_ns,
            tokens_per_event=partial(plan.tokens_per_event.sample_count, rng),
            max_tokens=request.max_tokens or plan.output_tokens,
            sends_role=request.chat,
            sends_role_early=plan.role == "early",
            include_usage=request.include_usage,
        )
        job: Job
        if not request.stream:
            job = JsonResponse(
                connection, chunks, timing, fault, head, record, request.prompt_tokens, self._on_tokens, self._on_end
            )
        else:
            job = Stream(
                make_actions(chunks, timing, fault),
                record,
                request.prompt_tokens,
                is_resumable=request.resumable,
                on_tokens=self._on_tokens,
                on_end=self._on_end,
            )
            connection.begin(head)
            job.join(connection)
            if request.resumable:
                self._keep_resumable(job)
        connection.job = job
        self._slots.submit(job)

    def _keep_resumable(self, stream: Stream) -> None:
        """For clients that resume."""
        self._resumable[stream.record.id] = stream
        if len(self._resumable) > RESUMABLE_KEPT:
            del self._resumable[next(iter(self._resumable))]

    def _resume(self, connection: Connection, stream_id: str, headers: dict[str, str]) -> None:
        stream = self._resumable.get(stream_id)
        after = headers.get("last-event-id", "0")
        if stream is None:
            _send_error(connection, 404, f"There is no resumable stream {stream_id}.")
        elif not after.isdecimal():
            _send_error(connection, 400, "Last-Event-ID must be the number of an event.", "Last-Event-ID")
        else:
            connection.job = stream
            connection.begin(f"x-stream-id: {stream_id}\r\n".encode("latin-1"))
            stream.join(connection, int(after))

    # Called by jobs.

    def _on_slot(self, job: Job) -> None:
        """The job has a slot. Without a limit of slots its times count from its arrival."""
        record = job.record
        from_ns = perf_counter_ns() if self._plan.max_running is not None else record.arrived_ns
        if job.first_wait_ns != FOREVER_NS:
            self._engine.schedule(from_ns + job.first_wait_ns, job)

    def _on_tokens(self, job: Job, tokens: int) -> None:
        self._slots.add_tokens(job, tokens)
        self._metrics.generation_tokens += tokens
        if len(job.record.sent_ns) == 1:
            self._metrics.observe_ttft(job.record.sent_ns[0] - job.record.arrived_ns)

    def _on_end(self, job: Job) -> None:
        self._metrics.prompt_tokens += job.prompt_tokens
        self._slots.release(job)

    def _schedule_freezes(self, first_ns: int) -> None:
        if not self._freezes_scheduled:
            self._freezes_scheduled = True
            for freeze in self._plan.freezes:
                self._engine.schedule(first_ns + round(freeze.at_s * 1e9), _FreezeEvent(self._engine, freeze))


class _FreezeEvent:
    def __init__(self, engine: Engine, freeze: Freeze) -> None:
        self._engine = engine
        self._freeze = freeze

    def fire(self) -> None:
        self._engine.freeze(self._freeze.for_s)


def _ns(times_ms: Distribution, rng: Random) -> Callable[[], int]:
    return lambda: round(times_ms.sample(rng) * 1e6)


def _send_error(connection: Connection, status: int, message: str, param: str | None = None) -> None:
    connection.answer(status, orjson.dumps(error_body(status, message, param)))


def _send_planned_error(connection: Connection, status: int, fault: Fault) -> None:
    headers = b"retry-after: %d\r\n" % fault.retry_after_s if status in {429, 503} else b""
    code = {429: "rate_limit_exceeded", 503: "overloaded"}.get(status)
    message = f"The plan answers {status}."
    connection.answer(status, orjson.dumps(error_body(status, message, code=code)), headers)
