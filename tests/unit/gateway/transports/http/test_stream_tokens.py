"""A browser's `EventSource` comes back with a token where others send a key."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gateway.logs import ACCESS
from gateway.streams.registry import Limits
from gateway.transports.http.stream_tokens import StreamTokens
from tests.support.asgi import Client
from tests.support.harness import HttpHarness, key_line
from tests.support.time import VirtualClock, clock, in_virtual_time, settle

ANN = {"Authorization": "Bearer sk-a"}
BOB = {"Authorization": "Bearer sk-b"}
HTTP_LIMITS = Limits(max_timeout_s=300, max_grace_s=600, retention_s=120, max_bytes=2**20, max_total_bytes=2**24)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", "sk-a") + key_line("bob", "sk-b"), encoding="utf-8")
    return path


async def begun(harness: HttpHarness, headers: dict[str, str] = ANN) -> tuple[Client, str, str]:
    """A resumable stream with two events, its id and its token."""
    client = harness.post(headers={**headers, "X-Stream-Resumable": "60"})
    await settle()
    harness.engine.runs[-1].put_text("Hel", 1)
    await settle()
    return client, client.headers["x-stream-id"], client.headers["x-stream-token"]


def test_a_token_is_for_one_stream_one_owner_and_a_time() -> None:
    time = VirtualClock()
    tokens = StreamTokens(time)
    token = tokens.make("chatcmpl-1", "ann", time.now() + 100)

    assert tokens.is_valid(token, "chatcmpl-1", "ann")
    assert not tokens.is_valid(token, "chatcmpl-2", "ann")
    assert not tokens.is_valid(token, "chatcmpl-1", "bob")
    assert not tokens.is_valid(token, "chatcmpl-1", None)
    assert not StreamTokens(time).is_valid(token, "chatcmpl-1", "ann"), "another process has another secret"

    time.advance(101.5)

    assert not tokens.is_valid(token, "chatcmpl-1", "ann")


@pytest.mark.parametrize("damage", ["", "x", ".", "0.0", "later", "\u00e9", "é" * 70, "-1." + "0" * 64])
def test_an_invalid_token_is_refused(damage: str) -> None:
    time = VirtualClock()
    tokens = StreamTokens(time)
    token = tokens.make("chatcmpl-1", "ann", time.now() + 100)
    if damage == "later":
        until, _, proof = token.partition(".")
        damage = f"{int(until, 16) + 1:x}.{proof}"

    assert not tokens.is_valid(damage, "chatcmpl-1", "ann")
    assert not tokens.is_valid(token + damage, "chatcmpl-1", "ann") or not damage
    for place in range(len(token)):
        forged = token[:place] + ("0" if token[place] != "0" else "1") + token[place + 1 :]
        assert not tokens.is_valid(forged, "chatcmpl-1", "ann")


@in_virtual_time
async def test_a_stream_is_read_with_its_token_instead_of_a_key(keys_file: Path) -> None:
    harness = HttpHarness(keys_file=keys_file)
    first, stream_id, token = await begun(harness)
    reader = harness.request("GET", f"/v1/streams/{stream_id}?token={token}&starting_after=1")
    again = harness.resume(stream_id + f"?token={token}", 1)
    status = await harness.request(
        "GET", f"/v1/streams/{stream_id}?token={token}", headers={"Accept": "application/json"}
    ).finish()
    harness.engine.runs[-1].end("lo")
    for client in (first, reader, again):
        await client.finish()

    assert status.json()["status"] == "running"
    assert (reader.status, again.status) == (200, 200)
    assert reader.numbered() == again.numbered() == first.numbered()[1:]
    assert reader.headers["x-stream-token"] == token
    assert reader.events()[-1] == "[DONE]"


@in_virtual_time
async def test_only_resumable_streams_have_a_token(keys_file: Path) -> None:
    harness = HttpHarness(keys_file=keys_file)
    plain = harness.post(headers=ANN)
    await settle()
    harness.engine.runs[-1].end("x")
    await plain.finish()

    assert "x-stream-token" not in plain.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/streams/{id}?token={token}"),
        ("POST", "/v1/streams/{id}/cancel?token={token}"),
        ("GET", "/v1/streams/{other}?token={token}"),
        ("GET", "/v1/streams/{bobs}?token={token}"),
        ("GET", "/v1/streams?token={token}"),
        ("GET", "/v1/models?token={token}"),
        ("POST", "/v1/chat/completions?token={token}"),
        ("GET", "/v1/streams/{id}?token={token}x"),
        ("GET", "/v1/streams/{id}?token="),
        ("GET", "/v1/streams/{id}?token=x&token={token}"),
        ("GET", "/v1/streams/{id}?Token={token}"),
        ("GET", "/v1/streams/{id}?token=%00"),
        ("GET", "/v1/streams/{id}"),
    ],
)
@in_virtual_time
async def test_a_token_permits_nothing_else(keys_file: Path, method: str, path: str) -> None:
    harness = HttpHarness(keys_file=keys_file)
    first, stream_id, token = await begun(harness)
    second, other, _ = await begun(harness)
    third, bobs, _ = await begun(harness, BOB)
    answer = await harness.request(method, path.format(id=stream_id, other=other, bobs=bobs, token=token)).finish()

    assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
    assert token not in answer.body.decode()
    assert harness.registry.active == 3

    for run, client in zip(harness.engine.runs, (first, second, third), strict=True):
        run.end("x")
        await client.finish()


@in_virtual_time
async def test_a_key_has_precedence_over_a_token(keys_file: Path) -> None:
    """Bob may not read Ann's stream by sending his key along."""
    harness = HttpHarness(keys_file=keys_file)
    first, stream_id, token = await begun(harness)

    assert (await harness.request("GET", f"/v1/streams/{stream_id}?token={token}", headers=BOB).finish()).status == 404

    reader = harness.request("GET", f"/v1/streams/{stream_id}?token=old", headers=ANN)
    harness.engine.runs[-1].end("x")
    await reader.finish()
    await first.finish()

    assert reader.status == 200


@in_virtual_time
async def test_the_tokens_of_a_removed_key_are_invalid(keys_file: Path) -> None:
    harness = HttpHarness(keys_file=keys_file)
    first, stream_id, token = await begun(harness)
    keys_file.write_text(key_line("bob", "sk-b"), encoding="utf-8")
    assert harness.keys is not None
    harness.keys.refresh()

    assert (await harness.request("GET", f"/v1/streams/{stream_id}?token={token}").finish()).status == 401

    harness.engine.runs[-1].end("x")
    await first.finish()


@in_virtual_time
async def test_a_token_expires_with_its_stream(keys_file: Path) -> None:
    harness = HttpHarness(keys_file=keys_file, limits=HTTP_LIMITS)
    first, stream_id, token = await begun(harness)
    harness.engine.runs[-1].end("x")
    await first.finish()
    path = f"/v1/streams/{stream_id}?token={token}"

    assert (await harness.request("GET", path).finish()).status == 200
    assert (await harness.resume(stream_id + f"?token={token}", len(first.numbered())).finish()).status == 204

    clock().advance(121)
    await settle()

    assert (await harness.request("GET", path).finish()).status == 410, "which ends an EventSource"

    clock().advance(300)

    assert (await harness.request("GET", path).finish()).status == 401


@in_virtual_time
async def test_a_token_is_valid_for_as_long_as_its_stream_can_live(keys_file: Path) -> None:
    harness = HttpHarness(keys_file=keys_file, limits=HTTP_LIMITS)
    first, stream_id, token = await begun(harness)
    clock().advance(299)
    reader = harness.request("GET", f"/v1/streams/{stream_id}?token={token}")
    await settle()

    assert reader.status == 200

    harness.engine.runs[-1].end("x")
    await reader.finish()
    await first.finish()


@in_virtual_time
async def test_without_keys_a_token_is_ignored() -> None:
    harness = HttpHarness()
    first, stream_id, token = await begun(harness)
    readers = [
        harness.request("GET", f"/v1/streams/{stream_id}{query}") for query in ("", f"?token={token}", "?token=x")
    ]
    harness.engine.runs[-1].end("x")
    for client in (first, *readers):
        await client.finish()

    assert [reader.status for reader in readers] == [200, 200, 200]


@in_virtual_time
async def test_a_token_is_in_no_log(keys_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, ACCESS.name)
    harness = HttpHarness(keys_file=keys_file)
    first, stream_id, token = await begun(harness)
    reader = harness.request("GET", f"/v1/streams/{stream_id}?token={token}")
    await harness.request("GET", f"/v1/streams/{stream_id}?token={token}x").finish()
    harness.engine.runs[-1].end("x")
    await reader.finish()
    await first.finish()

    everything = repr([vars(record) for record in caplog.records])
    assert stream_id in everything
    assert token not in everything
    assert token.partition(".")[2] not in everything
