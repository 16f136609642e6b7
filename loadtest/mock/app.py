"""The paths, and what joins the parts: from a request to its stream, and from the streams to the gauges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from time import perf_counter_ns

import orjson

from loadtest.mock import request_body
from loadtest.mock.connection import Connection
from loadtest.mock.draw import Draw, sampler
from loadtest.mock.engine import Engine
from loadtest.mock.faults import Fault, Kind
from loadtest.mock.ground_truth import Lateness, Record
from loadtest.mock.json_response import Whole
from loadtest.mock.metrics import Gauges
from loadtest.mock.openai_chunks import Chunks, error_body
from loadtest.mock.plan import Freeze, Plan
from loadtest.mock.request_body import Asked, Refused
from loadtest.mock.script import FOREVER_NS, Manner, script
from loadtest.mock.slots import Turns
from loadtest.mock.stream import Job, Stream

__all__ = ["App"]

# So many finished resumable streams can still be joined.
KEPT = 4096
_STATUS = {Kind.HTTP_400: 400, Kind.HTTP_429: 429, Kind.HTTP_500: 500, Kind.HTTP_503: 503}


class App:
    """One mock."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        self.records: list[Record] = []
        self.lateness = Lateness()
        self._plan = plan
        chance = plan.chance("engine")
        step_ns = _ns(plan.itl_ms, chance) if plan.steps else None
        self._engine = Engine(loop, step_ns, self.lateness)
        self._gauges = Gauges(plan.model, plan.kv_tokens)
        self._turns = Turns(plan.max_running, self._run)
        self._accept_delay_s = sampler(plan.accept_delay_s, chance)
        self._resumable: dict[str, Stream] = {}
        self._frozen = False

    def connection(self) -> Connection:
        """For the event loop, one for each client."""
        return Connection(self, self._accept_delay_s)

    def close(self) -> None:
        self._engine.close()

    # What a connection says.

    def asked(self, connection: Connection, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        match method, path:
            case "POST", "/v1/chat/completions":
                self._generate(connection, True, headers, body)
            case "POST", "/v1/completions":
                self._generate(connection, False, headers, body)
            case "GET", "/metrics":
                connection.answer(200, self._gauges.exposition(self._turns), kind=b"text/plain; version=0.0.4")
            case "GET", "/v1/models":
                model = {"id": self._plan.model, "object": "model", "created": 0, "owned_by": "vllm"}
                connection.answer(200, orjson.dumps({"object": "list", "data": [model]}))
            case "GET", "/health" | "/livez" | "/readyz":
                connection.answer(200, b"{}")
            case "GET", _ if path.startswith("/v1/streams/"):
                self._resume(connection, path.removeprefix("/v1/streams/"), headers)
            case _:
                _refuse(connection, 404, f"There is no {method} {path} here.")

    def left(self, connection: Connection) -> None:
        job, connection.job = connection.job, None
        if job is None or job.leave(connection):
            return
        if job.record.fault == Kind.LEAK:
            job.abandon()
        else:
            job.end("left")

    # A request for tokens.

    def _generate(self, connection: Connection, chat: bool, headers: dict[str, str], body: bytes) -> None:
        self._plan_freezes(connection.arrived_ns)
        rng = self._plan.chance(len(self.records))
        stream_id = f"{'chatcmpl' if chat else 'cmpl'}-{rng.getrandbits(128):032x}"
        request_id = headers.get("x-request-id") or f"mock-{len(self.records)}"
        record = Record(stream_id, request_id, False, None, connection.arrived_ns)
        self.records.append(record)
        try:
            wanted = request_body.read(chat, headers, body)
        except Refused as error:
            record.status, record.end = error.status, "refused"
            _refuse(connection, error.status, str(error), error.param)
            return
        fault = wanted.fault or self._plan.fault(rng)
        record.stream, record.fault = wanted.stream, None if fault is None else fault.kind
        if fault is not None and (status := _STATUS.get(fault.kind)) is not None:
            record.status, record.end = status, "refused"
            _fail(connection, status, fault)
            return
        if fault is not None and fault.kind is Kind.SILENCE:
            return
        head = f"x-stream-id: {stream_id}\r\nx-request-id: {request_id}\r\n".encode("latin-1")
        self._start(connection, wanted, fault, record, rng, head)

    def _start(
        self, connection: Connection, wanted: Asked, fault: Fault | None, record: Record, rng: Random, head: bytes
    ) -> None:
        plan = self._plan
        chunks = Chunks(wanted, record.id, plan.model, int(time.time()))
        ttft_ns, itl_ns = _ns(plan.ttft_ms, rng)(), _ns(plan.itl_ms, rng)
        per_event = sampler(plan.tokens_per_event, rng)
        manner = Manner(
            ttft_ns=ttft_ns,
            itl_ns=(lambda: 0) if plan.steps and wanted.stream else itl_ns,
            tokens_per_event=lambda: max(1, round(per_event())),
            max_tokens=wanted.max_tokens or plan.output_tokens,
            role=wanted.chat,
            early=plan.role == "early",
            include_usage=wanted.include_usage,
        )
        job: Job
        if not wanted.stream:
            job = Whole(connection, chunks, manner, fault, head, record, wanted.prompt_tokens, self._said, self._ended)
        else:
            job = Stream(
                script(chunks, manner, fault),
                record,
                wanted.prompt_tokens,
                numbered=wanted.resumable,
                on_tokens=self._said,
                on_end=self._ended,
            )
            connection.begin(head)
            job.join(connection)
            if wanted.resumable:
                self._keep(job)
        connection.job = job
        self._turns.ask(job)

    def _keep(self, stream: Stream) -> None:
        """For readers who come back."""
        self._resumable[stream.record.id] = stream
        if len(self._resumable) > KEPT:
            del self._resumable[next(iter(self._resumable))]

    def _resume(self, connection: Connection, stream_id: str, headers: dict[str, str]) -> None:
        stream = self._resumable.get(stream_id)
        after = headers.get("last-event-id", "0")
        if stream is None:
            _refuse(connection, 404, f"There is no resumable stream {stream_id}.")
        elif not after.isdecimal():
            _refuse(connection, 400, "Last-Event-ID must be the number of an event.", "Last-Event-ID")
        else:
            connection.job = stream
            connection.begin(f"x-stream-id: {stream_id}\r\n".encode("latin-1"))
            stream.join(connection, int(after))

    # What jobs say.

    def _run(self, job: Job) -> None:
        """It is its turn: at once if that was free, so from its arrival."""
        record = job.record
        from_ns = perf_counter_ns() if self._plan.max_running is not None else record.arrived_ns
        if job.first_wait_ns != FOREVER_NS:
            self._engine.push(from_ns + job.first_wait_ns, job)

    def _said(self, job: Job, tokens: int) -> None:
        self._turns.said(job, tokens)
        self._gauges.generation_tokens += tokens
        if len(job.record.sent_ns) == 1:
            self._gauges.first_token(job.record.sent_ns[0] - job.record.arrived_ns)

    def _ended(self, job: Job) -> None:
        self._gauges.prompt_tokens += job.prompt_tokens
        self._turns.over(job)

    def _plan_freezes(self, first_ns: int) -> None:
        if not self._frozen:
            self._frozen = True
            for freeze in self._plan.freezes:
                self._engine.push(first_ns + round(freeze.at_s * 1e9), _Frost(self._engine, freeze))


class _Frost:
    """A freeze that is due."""

    def __init__(self, engine: Engine, freeze: Freeze) -> None:
        self._engine = engine
        self._freeze = freeze

    def fire(self) -> None:
        self._engine.freeze(self._freeze.for_s)


def _ns(draw: Draw, rng: Random) -> Callable[[], int]:
    ms = sampler(draw, rng)
    return lambda: round(ms() * 1e6)


def _refuse(connection: Connection, status: int, message: str, param: str | None = None) -> None:
    connection.answer(status, orjson.dumps(error_body(status, message, param)))


def _fail(connection: Connection, status: int, fault: Fault) -> None:
    """As the plan says."""
    headers = b"retry-after: %d\r\n" % fault.retry_after_s if status in {429, 503} else b""
    code = {429: "rate_limit_exceeded", 503: "overloaded"}.get(status)
    message = f"This is the plan's {status}."
    connection.answer(status, orjson.dumps(error_body(status, message, code=code)), headers)
