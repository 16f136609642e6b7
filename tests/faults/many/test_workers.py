"""Several workers on one engine: what holds for one process holds for all of them together, whichever the kernel gives
a connection to; and none of them outlives the others.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.conftest import SYNTHETIC, Serve, Shared, Wanted
from tests.faults.many.worker_requests import WORKERS, answered_by, assert_exact, begin, begin_many, worker_of
from tests.support.server import MODEL, READY_WITHIN_S, Server, check_error, descendants, poll
from tests.support.stream_client import COMPLETIONS, Answer, ask, completion

pytestmark = pytest.mark.timeout(600)

SLOTS, PLACES = 60, 4
FOREVER = 20_000
ENV = {
    **SYNTHETIC,
    "SLUICE_SERVER__WORKERS": str(WORKERS),
    "SLUICE_SERVER__DRAIN_TIMEOUT_S": "20",
    "SLUICE_SYNTHETIC__STEP_MS": "20",
    "SLUICE_ADMISSION__MAX_CONCURRENT": str(SLOTS),
    "SLUICE_ADMISSION__MAX_WAITING": str(PLACES),
    "SLUICE_STREAMS__KEEPALIVE_S": "1",
    "SLUICE_SUPERVISOR__HANG_TIMEOUT_S": "3",
}


SERVERS = {"workers": Wanted(lambda _: ENV.copy(), keys=True)}


def wait_for_all(server: Server) -> None:
    """Until all workers serve: one that answers does not speak for the others."""
    poll("all workers are ready", lambda: "ready: " in server.stderr() or not server.running(), READY_WITHIN_S, 0.1)
    server.wait_ready()


@pytest.fixture
def shared(fleet: dict[str, Shared]) -> Shared:
    wait_for_all(fleet["workers"].server)
    return fleet["workers"]


@pytest.fixture
def alone(serve: Serve) -> Shared:
    """A server that its test may end."""
    server = serve(env=ENV)
    wait_for_all(server)
    return Shared(server, {"anna": {}}, None)


@pytest.fixture
def clients(shared: Shared) -> Iterator[dict[int, httpx.Client]]:
    """A client for each worker, whose one connection the kernel has given to that worker."""
    found: dict[int, httpx.Client] = {}
    spare = []
    while len(found) < WORKERS:
        client = httpx.Client(
            base_url=shared.server.url, headers=shared.me, timeout=30, limits=httpx.Limits(max_connections=1)
        )
        made = client.post(COMPLETIONS, json=completion(0, 1, stream=False))
        if found.setdefault(worker_of(made.json()["id"]), client) is not client:
            spare.append(client)
    yield found
    for client in [*spare, *found.values()]:
        client.close()


def test_streams_of_all_workers_are_exact_and_their_metrics_are_one(shared: Shared) -> None:
    streams, tokens = 40, 100
    server = shared.server
    before = server.samples()

    async def run() -> list[Answer]:
        tasks = await begin_many(shared, streams, tokens)
        assert server.sample("sluice_streams_active") == streams
        return await asyncio.gather(*tasks)

    assert_exact(asyncio.run(run()), tokens)

    after = server.samples()

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown('sluice_ended_total{cause="completed"}') == streams
    assert grown("sluice_time_to_first_token_seconds_count") == streams
    assert grown("vllm:generation_tokens_total") == streams * tokens
    assert grown('vllm:request_success_total{finished_reason="length"}') == streams
    assert after["sluice_workers"] == WORKERS
    assert after["sluice_build_info"] == 1
    server.wait_idle()


@pytest.mark.parametrize("owner", range(WORKERS))
def test_a_stream_is_found_through_every_worker(shared: Shared, clients: dict[int, httpx.Client], owner: int) -> None:
    """Its status, its events from any number on, and only for the key that made it."""
    tokens = 60

    async def run() -> tuple[str, Answer]:
        connection = await begin(shared, owner, completion(7, tokens), **{"X-Stream-Resumable": "60"})
        return connection.answer.headers["x-stream-id"], await connection.rest()

    stream_id, answer = asyncio.run(run())
    url = f"/v1/streams/{stream_id}"
    for client in clients.values():
        status = client.get(url, headers={"Accept": "application/json"})
        again = client.get(url, headers={"X-Request-Id": "mine"})
        rest = client.get(url, headers={"Last-Event-ID": str(answer.ids[9])})

        assert (status.status_code, status.json()["status"]) == (200, "completed")
        assert (again.status_code, again.content, again.headers["x-request-id"]) == (200, answer.body, "mine")
        assert again.headers["content-type"].startswith("text/event-stream")
        assert again.headers.get_list("date") == [again.headers["date"]]
        assert rest.content.startswith(b"id: %d\n" % answer.ids[10])
        assert answer.body.endswith(rest.content)
        assert client.get(url, headers={"Last-Event-ID": str(answer.ids[-1])}).status_code == 204
        assert client.get(f"{url}?starting_after={answer.ids[-1] + 5}").status_code == 400
        check_error(client.get(url, headers=shared.keys["bert"]), 404)
        assert client.get(url, headers={"Authorization": "Bearer none"}).status_code == 401
        # What a browser has instead of the key, through any worker.
        token, keyless = again.headers["x-stream-token"], {"Authorization": ""}
        by_token = client.get(f"{url}?token={token}", headers=keyless)
        assert (by_token.status_code, by_token.content) == (200, answer.body)
        assert client.delete(f"{url}?token={token}", headers=keyless).status_code == 401
    assert answer.exact(7, tokens) or answer.ids == list(range(1, len(answer.ids) + 1))


@pytest.mark.parametrize("owner", range(WORKERS))
@pytest.mark.parametrize("how", ["DELETE", "POST"])
def test_a_request_is_cancelled_through_another_worker(
    shared: Shared, clients: dict[int, httpx.Client], owner: int, how: str
) -> None:
    other = clients[(owner + 1) % WORKERS]

    async def run() -> tuple[httpx.Response, Answer]:
        connection = await begin(shared, owner, completion(7, FOREVER))
        await connection.chunk()
        url = f"/v1/streams/{connection.answer.headers['x-stream-id']}" + ("/cancel" if how == "POST" else "")
        check_error(other.request(how, url, headers=shared.keys["bert"]), 404)
        return other.request(how, url), await connection.rest()

    response, answer = asyncio.run(run())

    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    assert answer.error is not None
    assert answer.error["code"] == "cancelled"
    assert answer.done
    shared.server.wait_idle()


@pytest.mark.parametrize("owner", range(WORKERS))
def test_requests_of_vllms_own_app_are_cancelled_through_another_worker(
    shared: Shared, clients: dict[int, httpx.Client], owner: int
) -> None:
    """Its ids name no worker, so the workers ask each other."""
    ask_for = {"model": MODEL, "input": "Hello", "stream": True, "max_output_tokens": FOREVER, "temperature": 0}
    other = clients[(owner + 1) % WORKERS]
    with clients[owner].stream("POST", "/v1/responses", json=ask_for) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
        url = f"/v1/streams/{json.loads(next(lines)[6:])['response']['id']}"
        assert next(line for line in lines if "output_text.delta" in line)
        check_error(other.delete(url, headers=shared.keys["bert"]), 404)
        response = other.delete(url)

    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    shared.server.wait_idle()


def test_unknown_ids_are_404_in_every_worker(shared: Shared, clients: dict[int, httpx.Client]) -> None:
    for client in clients.values():
        for name in (f"cmpl-w00{'0' * 28}", f"cmpl-w01{'0' * 28}", f"cmpl-wff{'0' * 28}", "resp_none", "..%2f..", "ä"):
            check_error(client.get(f"/v1/streams/{name}"), 404)
            check_error(client.delete(f"/v1/streams/{name}"), 404)


def test_leaving_through_another_worker_cancels_the_request(shared: Shared, clients: dict[int, httpx.Client]) -> None:
    other = clients[1]

    async def run() -> str:
        connection = await begin(shared, 0, completion(7, FOREVER), **{"X-Stream-Resumable": "0.5"})
        stream_id = connection.answer.headers["x-stream-id"]
        with other.stream("GET", f"/v1/streams/{stream_id}") as reading:
            connection.writer.close()
            pieces = reading.iter_raw()
            began = time.monotonic()
            while time.monotonic() < began + 1.5:
                assert next(pieces)
        return stream_id

    stream_id = asyncio.run(run())
    options = {"headers": {**shared.me, "Accept": "application/json"}}
    url = f"{shared.server.url}/v1/streams/{stream_id}"
    poll("its grace is over", lambda: httpx.get(url, **options).json()["status"] == "cancelled", 5)


def test_the_limits_hold_over_all_workers_together(shared: Shared, clients: dict[int, httpx.Client]) -> None:
    server = shared.server

    async def run() -> None:
        running = await begin_many(shared, SLOTS, FOREVER)
        waiting = [
            asyncio.create_task(ask(server.port, completion(first, 3), headers=shared.me)) for first in range(PLACES)
        ]
        while server.sample("sluice_requests_waiting") < PLACES:
            await asyncio.sleep(0.02)
        for client in clients.values():
            refused = client.post(COMPLETIONS, json=completion(1, 1, stream=False))

            check_error(refused, 503, code="overloaded")
            assert int(refused.headers["retry-after"]) >= 1

        found = server.samples()
        assert found["sluice_streams_active"] == found["vllm:num_requests_running"] == SLOTS
        assert found['sluice_rejections_total{reason="queue_full"}'] == WORKERS
        check_error(clients[0].post(COMPLETIONS, json=completion(1, 1, n=SLOTS + 1, temperature=1)), 400, param="n")
        for task in running[:PLACES]:
            task.cancel()
        answers = await asyncio.gather(*waiting)
        assert all(answer.exact(first, 3) for first, answer in enumerate(answers))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    asyncio.run(run())
    server.wait_idle()


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.full)], ids=["killed", "stuck"]
)
def test_the_engine_dies_under_streams_of_all_workers(shared: Shared, how: signal.Signals, figure: Any) -> None:
    streams, tokens = 40, 150
    server = shared.server
    restarts = server.sample("sluice_engine_restarts_total")
    continued = server.sample('sluice_streams_recovered_total{result="continued"}')

    async def run() -> list[Answer]:
        tasks = await begin_many(shared, streams, tokens)
        os.kill(server.engine_pid(), how)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    figure("engine death", f"{streams} streams on {WORKERS} workers, engine {how.name}: longest pause", f"{max(a.longest_gap_s for a in answers):.1f} s", "all exact")  # fmt: skip # noqa: E501

    assert_exact(answers, tokens)
    assert all(b": keep-alive" in answer.body for answer in answers), "the pause is bridged"
    assert server.sample("sluice_engine_restarts_total") == restarts + 1
    assert server.sample('sluice_streams_recovered_total{result="continued"}') == continued + streams
    assert f"{streams} requests go on" in server.stderr()
    server.wait_idle()


def members(server: Server) -> list[int]:
    """The workers, in the order of their numbers."""
    found = [
        pid for pid, _ in sorted(descendants(server.pid)) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(found) == WORKERS
    return found


def readiness(server: Server) -> int | None:
    """The status of `/readyz`; None if the connection was reset."""
    try:
        return httpx.get(f"{server.url}/readyz").status_code
    except httpx.ReadError:
        return None


def test_a_worker_dies_and_the_others_finish_before_the_server_ends(shared: Shared) -> None:
    """Last of those that share the server. Its own streams are lost, and not generated any further."""
    streams, tokens = 40, 200
    server = shared.server
    server.family = descendants(server.pid)

    async def run() -> list[Answer]:
        tasks = await begin_many(shared, streams, tokens)
        os.kill(members(server)[1], signal.SIGKILL)
        # Until its process is gone, the kernel gives it connections, and then resets them.
        poll("no new requests", lambda: readiness(server) == 503, 5)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    mine = [first for first, answer in enumerate(answers) if answered_by(answer) == 0]

    assert 0 < len(mine) < streams
    assert [first for first in mine if not answers[first].exact(first, tokens)] == []
    assert not any(answer.whole for first, answer in enumerate(answers) if first not in mine), "cut, as it was"
    assert server.process.wait(15) == 1
    assert "sluice: Worker 1 died (exit code -9)" in server.stderr()
    assert "Traceback" not in server.stderr()
    server.assert_no_orphan()


@pytest.mark.full
def test_on_sigterm_all_workers_drain(alone: Shared) -> None:
    server, tokens = alone.server, 200

    async def run() -> list[Answer]:
        tasks = await begin_many(alone, 20, tokens)
        os.killpg(server.pid, signal.SIGTERM)
        poll("no new requests", lambda: httpx.get(f"{server.url}/readyz").status_code == 503, 5)
        for _ in range(10):
            refused = httpx.post(server.url + COMPLETIONS, json=completion(1, 1), headers=alone.me)
            check_error(refused, 503, code="server_draining")
            assert refused.headers["connection"] == "close"
        return await asyncio.gather(*tasks)

    assert_exact(asyncio.run(run()), tokens)
    assert server.process.wait(15) == 0
    assert "starting it again" not in server.stderr()
    server.assert_no_orphan()


@pytest.mark.full
def test_a_second_signal_ends_all_workers_now(alone: Shared) -> None:
    server = alone.server

    async def run() -> list[Answer]:
        tasks = await begin_many(alone, 20, FOREVER)
        os.kill(server.pid, signal.SIGINT)
        poll("no new requests", lambda: httpx.get(f"{server.url}/readyz").status_code == 503, 5)
        os.kill(server.pid, signal.SIGINT)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())

    assert {answer.error["code"] for answer in answers if answer.error} == {"server_draining"}
    assert server.process.wait(10) == 0
    server.assert_no_orphan()


@pytest.mark.full
def test_nothing_outlives_a_parent_process_that_is_killed(alone: Shared) -> None:
    server = alone.server

    async def run() -> list[Answer]:
        tasks = await begin_many(alone, 20, FOREVER)
        os.kill(server.pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())

    assert all(answer.error is not None or not answer.whole for answer in answers), "no client can take it for an end"
    server.process.wait(5)
    server.assert_no_orphan()


@pytest.mark.full
def test_several_workers_on_several_engines(serve: Serve) -> None:
    """One engine that dies takes the others along; no stream of any worker notices more than a pause."""
    streams, tokens = 40, 150
    server = serve(env={**ENV, "SLUICE_ENGINE__DATA_PARALLEL_SIZE": "2"})
    wait_for_all(server)
    two = Shared(server, {"anna": {}}, None)

    async def run() -> list[Answer]:
        tasks = await begin_many(two, streams, tokens)
        os.kill(server.engine_pid(), signal.SIGKILL)
        return await asyncio.gather(*tasks)

    assert_exact(asyncio.run(run()), tokens)
    samples = server.samples()
    assert samples["vllm:generation_tokens_total"] == streams * tokens
    assert 0.3 < samples['vllm:generation_tokens_total{engine="0"}'] / (streams * tokens) < 0.7
    server.wait_idle()
    server.family = descendants(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait(5)
    server.assert_no_orphan()
