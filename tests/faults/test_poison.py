"""A request that ends engine after engine fails alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import POISON_TOKEN, SYNTHETIC, Serve, Shared
from tests.support.server import MODEL, Server, poll
from tests.support.stream_client import Answer, ask, completion

POISON = [POISON_TOKEN, 301]
TOKENS = 300


async def attacked(server: Server, streams: int, headers: dict[str, str]) -> tuple[list[Answer], Answer]:
    """The answers of so many streams beside a poison that comes when all of them run, and the poison's."""
    tasks = [asyncio.create_task(ask(server.port, completion(one, TOKENS), headers=headers)) for one in range(streams)]
    while server.sample("vllm:num_requests_running") < streams:
        await asyncio.sleep(0.1)
    poison = await ask(server.port, {**completion(0, TOKENS), "prompt": POISON}, headers=headers)
    return await asyncio.gather(*tasks), poison


def is_given_up(answer: Answer) -> bool:
    error: dict[str, Any] = answer.error or {}
    return (error.get("code"), error.get("retryable")) == ("fatal_request", False)


@pytest.mark.timeout(600)
def test_one_poison_among_streams_fails_alone(synthetic: Shared, full: bool, figure: Any) -> None:
    server, me = synthetic.server, synthetic.me
    streams = 50 if full else 20
    restarts = server.sample("sluice_engine_restarts_total")
    expelled = server.sample('sluice_streams_recovered_total{result="expelled"}')
    answers, poison = asyncio.run(attacked(server, streams, me))
    exact = sum(answer.exact(first, TOKENS) for first, answer in enumerate(answers))
    deaths = server.sample("sluice_engine_restarts_total") - restarts
    figure(
        "deadly request",
        f"1 among {streams} streams: engine deaths, others exact",
        f"{deaths:g}, {exact}",
        f"2, {streams}",
    )

    assert exact == streams
    assert deaths <= 2
    assert is_given_up(poison) or poison.status == 500
    assert server.sample('sluice_streams_recovered_total{result="expelled"}') == expelled + 1
    assert "is given up: the engine died 2 times" in server.stderr()
    server.wait_idle()


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_poisons_of_every_kind_leave_the_process_alive(serve: Serve, tmp_path: Path, workers: int, figure: Any) -> None:
    """With the default limit of restarts: deadly from the start, and at a token of its own."""
    control = tmp_path / "control.json"
    env = {name: value for name, value in SYNTHETIC.items() if "MAX_RESTARTS" not in name}
    env |= {
        "SLUICE_SYNTHETIC__STEP_MS": "20",
        "SLUICE_SYNTHETIC__CONTROL_FILE": str(control),
        "SLUICE_SYNTHETIC__POISON_TOKEN": str(POISON_TOKEN),
        "SLUICE_SERVER__WORKERS": str(workers),
    }
    server = serve(env=env)
    for length, most in ((0, 2), (len(POISON) + 40, 3), (0, 2)):
        control.write_text(f'{{"poison_length": {length}}}')
        time.sleep(0.2)
        restarts = server.sample("sluice_engine_restarts_total")
        answers, poison = asyncio.run(attacked(server, 50, {}))
        exact = sum(answer.exact(first, TOKENS) for first, answer in enumerate(answers))
        deaths = server.sample("sluice_engine_restarts_total") - restarts
        what = f"{workers} workers, deadly at {length} tokens: engine deaths, others exact"
        figure("deadly request", what, f"{deaths:g}, {exact}", f"{most}, 50")

        assert exact == 50
        assert is_given_up(poison) or poison.status == 500
        assert server.running()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_poison_of_vllms_own_endpoints_fails_alone_too(serve: Serve, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    env = {**SYNTHETIC, "SLUICE_SYNTHETIC__STEP_MS": "20", "SLUICE_SYNTHETIC__CONTROL_FILE": str(control)}
    server = serve(env=env)
    question = [{"role": "user", "content": "Hello"}]
    first = server.post("/tokenize", model=MODEL, messages=question).json()["tokens"][0]
    control.write_text(f'{{"poison_token": {first}}}')
    time.sleep(0.2)

    async def attack(path: str, body: dict[str, Any]) -> tuple[list[Answer], Answer]:
        tasks = [asyncio.create_task(ask(server.port, completion(one, TOKENS))) for one in range(10)]
        while server.sample("vllm:num_requests_running") < 10:
            await asyncio.sleep(0.1)
        poison = await ask(server.port, {"model": MODEL, **body}, path=path)
        return await asyncio.gather(*tasks), poison

    for path, body in (
        ("/v1/messages", {"messages": question, "max_tokens": 50, "stream": True}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 50}),
    ):
        restarts = server.sample("sluice_engine_restarts_total")
        answers, poison = asyncio.run(attack(path, body))

        assert all(answer.exact(one, TOKENS) for one, answer in enumerate(answers))
        assert server.sample("sluice_engine_restarts_total") == restarts + 2
        assert b"not tried again" in poison.body or b"would fail again" in poison.body, poison.body
        server.wait_idle()


@pytest.mark.full
def test_a_long_step_is_work_and_a_step_without_end_is_not(serve: Serve, tmp_path: Path, figure: Any) -> None:
    """Scaled down: 3 s without an answer are too long for an engine that does nothing, 12 s for one that computes."""
    control = tmp_path / "control.json"
    env = {
        **SYNTHETIC,
        "SLUICE_SYNTHETIC__STEP_MS": "10",
        "SLUICE_SYNTHETIC__BUSY": "true",
        "SLUICE_SYNTHETIC__CONTROL_FILE": str(control),
        "SLUICE_SUPERVISOR__HANG_TIMEOUT_S": "3",
        "SLUICE_SUPERVISOR__LONG_STEP_TIMEOUT_S": "12",
    }
    server = serve(env=env)
    control.write_text('{"step_ms": 8000}')
    assert asyncio.run(ask(server.port, completion(1, 2))).exact(1, 2)
    assert server.sample("sluice_engine_restarts_total") == 0

    async def hang() -> Answer:
        asking = asyncio.create_task(ask(server.port, completion(2, 100)))
        await asyncio.sleep(6)
        assert server.sample("sluice_engine_restarts_total") == 0
        # For the next engine.
        control.write_text("{}")
        return await asking

    control.write_text('{"hang_at_step": 3}')
    began_s = time.monotonic()
    answer = asyncio.run(hang())
    found = f"{time.monotonic() - began_s:.0f} s"
    figure("hung engine", "a step without end that computes: its stream goes on after", found, "12 s + a restart")

    assert answer.exact(2, 100)
    assert server.sample("sluice_engine_restarts_total") == 1


def test_a_pause_of_the_gateway_is_not_the_engines_death(demo: Server, figure: Any) -> None:
    """Scaled down: its limit is 3 s."""
    server = demo
    restarts = server.sample("sluice_engine_restarts_total")
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(server.pid, signal.SIGCONT)
    poll("it is ready", lambda: server.http.get("/readyz").status_code == 200, 2)
    time.sleep(2)
    found = server.sample("sluice_engine_restarts_total") - restarts
    figure("hung engine", "engines ended for a pause of the gateway", f"{found:g}", "0")

    assert found == 0
    assert server.http.get("/readyz").status_code == 200
