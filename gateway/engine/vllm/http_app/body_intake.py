"""Request bodies for vLLM's own app: read, bounded, cleaned of trusted fields and validated before its handlers run.

FastAPI would parse and validate on the event loop, in one piece. So the body is dealt with here, in a thread where that
takes long, and FastAPI gets an empty object in its place; the field that would validate it takes the result instead.
What is not JSON (uploads) passes as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping
from contextvars import ContextVar
from functools import partial
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import ValidationError

from gateway.engine.base import CURRENT_STATS
from gateway.engine.bounded_json import is_cheap_to_parse
from gateway.engine.vllm.bounded_validation import BoundedValidator, to_client_error
from gateway.engine.vllm.http_app.document_reader import DocumentReader
from gateway.engine.vllm.http_app.invocations import InvocationsValidator
from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
from gateway.errors import DeadlineExceeded, SluiceError
from gateway.offload import Offload

T = TypeVar("T")

# So many items of a `/v1/responses` request take three milliseconds.
_LIGHT_CONTAINERS = 24

_validated: ContextVar[list[Any] | None] = ContextVar("sluice_validated", default=None)
"""The validated body of the running request, alone in a list; None where FastAPI is to look for itself."""


class BodyIntake:
    """vLLM's app behind its intake, an ASGI app."""

    def __init__(
        self,
        app: Any,
        screen: UntrustedFieldFilter,
        documents: DocumentReader,
        timeout_s: float,
        explain: Callable[[Exception, Any, dict[str, Any]], SluiceError],
    ) -> None:
        """`timeout_s` is how long checking one body may take. `explain` makes an error of ours of whatever a validator
        of vLLM's raised, for a type and a document."""
        self._app = app
        self._screen = screen
        self._documents = documents
        self._timeout_s = timeout_s
        self._explain = explain
        self._offload = Offload("sluice-intake")
        self._validators: dict[int, BoundedValidator | InvocationsValidator] = {}
        for route in app.routes:
            fields = getattr(getattr(route, "dependant", None), "body_params", [])
            if len(fields) == 1 and not getattr(route, "_embed_body_fields", False):
                info = fields[0].field_info
                self._validators[id(route)] = BoundedValidator(Annotated[info.annotation, info])
                _give_way(fields[0])
            elif (invocations := InvocationsValidator.for_route(route, app, _validated)) is not None:
                self._validators[id(route)] = invocations

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = self._screen.filter_raw_headers(scope["headers"])
        if scope["method"] in ("GET", "HEAD") or not _is_json(headers):
            await self._app({**scope, "headers": headers}, receive, send)
            return
        body = await _read(receive)
        if body is None:
            return
        taken = None
        if body:
            route = next((one for one in self._app.routes if _fits(one, scope)), None)
            try:
                taken, body = await self._take(body, self._validators.get(id(route)), receive)
            except _Left:
                return
        headers = [item for item in headers if item[0] not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", b"%d" % len(body)))
        token = _validated.set(taken)
        try:
            await self._app({**scope, "headers": headers}, _replay(body, receive), send)
        finally:
            _validated.reset(token)

    async def _take(
        self, body: bytes, validate: BoundedValidator | InvocationsValidator | None, receive: Any
    ) -> tuple[list[Any] | None, bytes]:
        if is_cheap_to_parse(body, _LIGHT_CONTAINERS):
            return self._check(body, validate)
        stats = CURRENT_STATS.get()
        tenant = None if stats is None else stats.caller.owner
        work = partial(self._check, body, validate)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await _while_present(self._offload.run(work, size=len(body), tenant=tenant), receive)
        except TimeoutError:
            raise DeadlineExceeded(
                f"Checking the request body took longer than {self._timeout_s:g} s (server.prepare_timeout_s)."
            ) from None

    def _check(
        self, body: bytes, validate: BoundedValidator | InvocationsValidator | None
    ) -> tuple[list[Any] | None, bytes]:
        """The validated body, and the bytes that FastAPI will read. Without a validator, it reads the body itself."""
        if validate is None:
            anything, cleaned = self._documents.read_any(body)
            return None, orjson.dumps(anything) if cleaned else body
        document = self._documents.read_object(body)
        try:
            request = validate(document)
        except ValidationError as error:
            raise to_client_error(error) from None
        except SluiceError:
            raise
        except Exception as error:
            raise self._explain(error, validate.kind, document) from None
        return [request], validate.short_fields(document) if isinstance(validate, InvocationsValidator) else b"{}"


class _Left(Exception):
    """The client has gone."""


async def _while_present(work: Coroutine[Any, Any, T], receive: Any) -> T:
    """The outcome of `work`, which is cancelled if the client leaves first. The request's body must have been read."""
    loop = asyncio.get_running_loop()
    working, watching = loop.create_task(work), loop.create_task(_departure(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Left
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _departure(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _give_way(field: Any) -> None:
    """Let FastAPI's field of a route's body take what has been validated already."""
    validate = field.validate

    def take(value: Any, values: Any = None, *, loc: Any = ()) -> tuple[Any, list[Any]]:
        taken = _validated.get()
        if taken is not None:
            return taken[0], []
        return validate(value, values or {}, loc=loc)  # type: ignore[no-any-return]

    field.validate = take


def _fits(route: Any, scope: MutableMapping[str, Any]) -> bool:
    pattern = getattr(route, "path_regex", None)
    methods = getattr(route, "methods", None) or ()
    return pattern is not None and scope["method"] in methods and pattern.fullmatch(scope["path"]) is not None


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in headers)


async def _read(receive: Any) -> bytes | None:
    """The whole body; its size is bounded where it enters the process. None if the client has left."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Any) -> Any:
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return pending.pop() if pending else await receive()

    return replay


__all__ = ["BodyIntake"]
