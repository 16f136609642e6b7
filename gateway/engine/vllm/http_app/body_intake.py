"""Request bodies for vLLM's own app: read, bounded, freed of untrusted fields and validated before its handlers run.

FastAPI would parse and validate a body on the event loop, in one piece. Here both happen in a thread where they take
long; FastAPI gets an empty object in the body's place, and the field that would validate it returns the result instead.
A body that is not JSON (an upload) passes unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import ValidationError

from gateway.asgi import read_body, wait_disconnect
from gateway.engine.base import CURRENT_STATS
from gateway.engine.bounded_json import is_cheap_to_parse
from gateway.engine.vllm.bounded_validation import BoundedValidator, to_client_error
from gateway.engine.vllm.http_app.document_reader import DocumentReader
from gateway.engine.vllm.http_app.invocations import InvocationsValidator
from gateway.errors import DeadlineExceeded, SluiceError
from gateway.offload import Offload

T = TypeVar("T")

# Validating a `/v1/responses` request with this many items takes 3 ms.
_LIGHT_CONTAINERS = 24

_validated: ContextVar[list[Any] | None] = ContextVar("sluice_validated", default=None)
"""The validated body of the current request, in a list of one; None where FastAPI validates it."""


@dataclass(slots=True, eq=False)
class BodyIntake:
    """An ASGI app that validates bodies in front of vLLM's app. `timeout_s` bounds the check of one body. `explain`
    turns an exception from a validator of vLLM's into an error of ours, given the type and the document."""

    app: Any
    documents: DocumentReader
    timeout_s: float
    explain: Callable[[Exception, Any, dict[str, Any]], SluiceError]
    _offload: Offload = field(default_factory=lambda: Offload("sluice-intake"), init=False)
    _validators: dict[int, BoundedValidator | InvocationsValidator] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for route in self.app.routes:
            fields = getattr(getattr(route, "dependant", None), "body_params", [])
            if len(fields) == 1 and not getattr(route, "_embed_body_fields", False):
                info = fields[0].field_info
                self._validators[id(route)] = BoundedValidator(Annotated[info.annotation, info])
                _replace_field_validation(fields[0])
            elif (invocations := InvocationsValidator.for_route(route, self.app, _validated)) is not None:
                self._validators[id(route)] = invocations

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = self.documents.field_filter.filter_raw_headers(scope["headers"])
        if scope["method"] in ("GET", "HEAD") or not _is_json(headers):
            await self.app({**scope, "headers": headers}, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        validated = None
        if body:
            route = next((one for one in self.app.routes if _matches(one, scope)), None)
            try:
                validated, body = await self._validate(body, self._validators.get(id(route)), receive)
            except _ClientDisconnected:
                return
        headers = [item for item in headers if item[0] not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", b"%d" % len(body)))
        token = _validated.set(validated)
        try:
            await self.app({**scope, "headers": headers}, _replay(body, receive), send)
        finally:
            _validated.reset(token)

    async def _validate(
        self, body: bytes, validate: BoundedValidator | InvocationsValidator | None, receive: Any
    ) -> tuple[list[Any] | None, bytes]:
        if is_cheap_to_parse(body, _LIGHT_CONTAINERS):
            return self._check(body, validate)
        stats = CURRENT_STATS.get()
        tenant = None if stats is None else stats.caller.owner
        work = partial(self._check, body, validate)
        try:
            async with asyncio.timeout(self.timeout_s):
                return await _until_disconnect(self._offload.run(work, size=len(body), tenant=tenant), receive)
        except TimeoutError:
            raise DeadlineExceeded(
                f"Checking the request body took longer than {self.timeout_s:g} s (server.prepare_timeout_s)."
            ) from None

    def _check(
        self, body: bytes, validate: BoundedValidator | InvocationsValidator | None
    ) -> tuple[list[Any] | None, bytes]:
        """The validated body, and the bytes that FastAPI will read. Without a validator, FastAPI validates."""
        if validate is None:
            document, is_changed = self.documents.read(body)
            return None, orjson.dumps(document) if is_changed else body
        document = self.documents.read_object(body)
        try:
            request = validate(document)
        except ValidationError as error:
            raise to_client_error(error) from None
        except SluiceError:
            raise
        except Exception as error:
            raise self.explain(error, validate.kind, document) from None
        return [request], validate.short_fields(document) if isinstance(validate, InvocationsValidator) else b"{}"


class _ClientDisconnected(Exception):
    pass


async def _until_disconnect(work: Coroutine[Any, Any, T], receive: Any) -> T:
    """The result of `work`, which is cancelled if the client disconnects first. The body must have been read."""
    loop = asyncio.get_running_loop()
    working, watching = loop.create_task(work), loop.create_task(wait_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _ClientDisconnected
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


def _replace_field_validation(field: Any) -> None:
    """Replaces the `validate` of FastAPI's body field because the body has been validated before FastAPI reads it."""
    validate = field.validate

    def return_validated(value: Any, values: Any = None, *, loc: Any = ()) -> tuple[Any, list[Any]]:
        validated = _validated.get()
        if validated is not None:
            return validated[0], []
        return validate(value, values or {}, loc=loc)  # type: ignore[no-any-return]

    field.validate = return_validated


def _matches(route: Any, scope: MutableMapping[str, Any]) -> bool:
    pattern = getattr(route, "path_regex", None)
    methods = getattr(route, "methods", None) or ()
    return pattern is not None and scope["method"] in methods and pattern.fullmatch(scope["path"]) is not None


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in headers)


def _replay(body: bytes, receive: Any) -> Any:
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return pending.pop() if pending else await receive()

    return replay
