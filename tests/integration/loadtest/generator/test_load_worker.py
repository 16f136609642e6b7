"""A worker against a real socket: an open loop does not wait, a closed one does, and the drain ends."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import gevent
import pytest

from loadtest.generator.load_worker import LoadWorker, WorkerShare
from loadtest.generator.precise_timer import PreciseTimer
from loadtest.measure.record import Record
from loadtest.scenario.loader import parse
from loadtest.scenario.workload import ServerInfo
from tests.integration.loadtest.raw_server import GOOD, HEAD, Script, Scripted

Run = Callable[..., tuple[LoadWorker, list[Record]]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a scenario to its end; the log is `requests.jsonl.gz` in the test's folder."""
    servers: list[Scripted] = []

    def start(script: Script, *, users: int = 0, **changes: Any) -> tuple[LoadWorker, list[Record]]:
        servers.append(Scripted(script))
        document = {
            "name": "x",
            "load": {"kind": "constant", "rate": 20},
            "stages": {"warmup_s": 0.2, "measure_s": 1, "drain_s": 1},
            "workloads": [{"name": "w", "prompt_tokens": 5, "output_tokens": 5}],
            **changes,
        }
        records: list[Record] = []
        worker = LoadWorker(
            parse(document, "here"),
            ServerInfo("m"),
            url=servers[-1].url,
            keys={},
            share=WorkerShare(0, 1, perf_counter_ns() + 50_000_000),
            log_file=tmp_path / "requests.jsonl.gz",
            on_record=records.append,
        )
        worker.start()
        for _ in range(users):
            gevent.spawn(worker.run_user)
        worker.join()
        assert worker.failures == []
        return worker, records

    yield start
    for one in servers:
        one.close()


def good(sock: socket.socket, _: bytes) -> None:
    sock.sendall(GOOD)


def never(sock: socket.socket, _: bytes) -> None:
    sock.sendall(HEAD)
    # Until the client closes the connection.
    sock.recv(1)


def test_every_arrival_is_sent_and_recorded_once(run: Run, tmp_path: Path) -> None:
    worker, records = run(good)

    # Every 50 ms for 1.2 s, the last at the very end of it; those of the first 0.2 s are warm-up.
    assert [record.number for record in records] == list(range(23))
    assert all(record.is_ok for record in records)
    assert (worker.aggregates.due_count, worker.aggregates.sent_count, worker.aggregates.overall().requests) == (
        20,
        20,
        20,
    )
    with gzip.open(tmp_path / "requests.jsonl.gz", "rt") as log:
        lines = [json.loads(line) for line in log]
    assert [line["number"] for line in lines] == list(range(23))
    assert all(line["tokens"] == [1, 1] and len(line["gaps_us"]) == 1 for line in lines)
    assert worker.health.lag.count > 50
    assert worker.health.events == pytest.approx(20 * 5, abs=10)


def test_an_open_loop_does_not_wait_for_responses(run: Run) -> None:
    """The server never answers, and arrivals go on; at the end of the drain all requests have failed."""
    worker, records = run(never)

    assert len(records) == 23
    assert {record.error for record in records} == {"deadline"}
    assert worker.aggregates.second(0).in_flight > 5
    assert worker.aggregates.overall().ttft.count == 20, "who waited in vain has waited"


def test_a_full_generator_drops_and_counts(run: Run) -> None:
    worker, records = run(never, max_in_flight=3)

    assert len(records) == 3
    assert worker.aggregates.dropped_count == worker.aggregates.overall().errors["dropped_arrival"] == 20
    assert (worker.aggregates.due_count, worker.aggregates.sent_count) == (20, 0)


def test_a_closed_loop_waits_for_the_answer_and_thinks(run: Run) -> None:
    def slowly(sock: socket.socket, request: bytes) -> None:
        time.sleep(0.1)
        good(sock, request)

    _, records = run(slowly, users=3, load={"kind": "closed", "users": 3, "think_s": 0.1})

    # 1.2 s at 0.2 s a round, by three.
    assert 12 <= len(records) <= 18
    assert len({record.number for record in records}) == len(records)


def test_a_conversation_sends_all_its_turns(run: Run) -> None:
    workload = {"name": "w", "turns": 3, "prompt_tokens": 5, "output_tokens": 5}
    _, records = run(good, load={"kind": "constant", "rate": 5}, workloads=[workload])

    turns = [record.turn for record in records if record.number == 0]
    assert turns == [1, 2, 3]


def test_a_precise_timer_wakes_on_time() -> None:
    timer = PreciseTimer()
    due = [perf_counter_ns() + number * 7_300_000 for number in range(20)]
    late_ns = []
    for at_ns in due:
        timer.sleep_until(at_ns)
        late_ns.append(perf_counter_ns() - at_ns)
    timer.close()

    assert min(late_ns) >= 0
    # The median, since the machine is shared; gevent's own sleep is late by 0.8 ms.
    assert sorted(late_ns)[10] < 700_000
