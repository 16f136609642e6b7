from __future__ import annotations

import gzip
import json
from pathlib import Path

import gevent

from loadtest.generator.request_log import RequestLog
from loadtest.measure.record import ReadMode, Record


def a_record(number: int) -> Record:
    return Record(number, 1, "chat", "anna", "m", True, ReadMode.PLAIN, intended_ns=1, started_ns=2)


def test_the_part_of_a_killed_worker_can_be_concatenated(tmp_path: Path) -> None:
    killed, closed = (RequestLog(tmp_path / name, 0) for name in ("killed", "closed"))
    killed.add(a_record(1))
    gevent.sleep(1.2)
    killed.add(a_record(2))
    gevent.sleep(1.2)
    left = (tmp_path / "killed").read_bytes()
    closed.add(a_record(3))
    closed.close()
    whole = left + (tmp_path / "closed").read_bytes()

    assert [json.loads(line)["number"] for line in gzip.decompress(whole).splitlines()] == [1, 2, 3]

    killed.close()


def test_without_requests_the_log_is_empty(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "part", 0)
    log.close()

    with gzip.open(tmp_path / "part") as lines:
        assert lines.read() == b""
