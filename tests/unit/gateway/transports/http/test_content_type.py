"""The declared type of a body, as `vllm serve` requires it."""

from __future__ import annotations

import pytest

from gateway.errors import ClientError
from gateway.transports.http.content_type import check_declared, check_json
from tests.support.asgi import Client
from tests.support.harness import CHAT, COMPLETION, HttpHarness
from tests.support.time import in_virtual_time


def typed(*values: str, length: str | None = "7") -> list[tuple[bytes, bytes]]:
    lines = [(b"content-type", value.encode()) for value in values]
    return lines if length is None else [*lines, (b"content-length", length.encode())]


@pytest.mark.parametrize("value", ["application/json", "APPLICATION/json", "application/json; charset=utf-8"])
def test_json_is_accepted(value: str) -> None:
    check_json(typed(value))
    check_declared(typed(value))


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        ("text/plain",),
        ("text/plain; x=application/json",),
        ("application/x-www-form-urlencoded",),
        ("multipart/form-data; boundary=application/json",),
        ("application/jsonp",),
        ("application/json, text/plain",),
        ("application/json", "text/plain"),
        ("text/plain", "application/json"),
    ],
)
def test_every_other_type_is_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(ClientError, match="Content-Type: application/json") as refused:
        check_json(typed(*values))

    assert (refused.value.status, refused.value.param) == (400, "Content-Type")


@pytest.mark.parametrize("values", [(), ("text/plain",), ("Text/Plain;charset=utf-8",), ("application/json", "x/y")])
def test_a_body_for_vllms_own_endpoints_needs_a_type(values: tuple[str, ...]) -> None:
    with pytest.raises(ClientError):
        check_declared(typed(*values))
    with pytest.raises(ClientError):
        check_declared([*typed(*values, length=None), (b"transfer-encoding", b"chunked")])

    check_declared(typed(*values, length=None))
    check_declared(typed(*values, length="0"))


def test_audio_is_uploaded_as_a_form() -> None:
    check_declared(typed("multipart/form-data; boundary=x"))


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@in_virtual_time
async def test_our_endpoints_check_the_type_before_they_read_the_body(path: str) -> None:
    harness = HttpHarness()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = await Client(
            harness.app, "POST", path, headers={"Content-Type": kind}, body=b"{", unfinished=True
        ).finish()

        assert (answer.status, answer.error()["param"]) == (400, "Content-Type")
    assert harness.at_rest


@in_virtual_time
async def test_vllms_endpoints_check_the_type_before_they_read_the_body() -> None:
    headers = {"Content-Type": "text/plain", "Content-Length": "2"}
    answer = await HttpHarness().request("POST", "/v1/embeddings", headers=headers, body=b"{}").finish()

    assert (answer.status, answer.error()["param"]) == (400, "Content-Type")
