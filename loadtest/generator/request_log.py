"""`requests.jsonl.gz`: one line for each request, written by a thread of its own, so that no disk delays a token."""

from __future__ import annotations

import gzip
from pathlib import Path

import gevent
import orjson
from gevent.threadpool import ThreadPool

from loadtest.measure.record import Record

_EVERY_S = 1.0


class RequestLog:
    """One worker's part of the file; parts are concatenated, as gzip allows.

    Each second's lines are a gzip member of their own, so that a worker that is killed leaves a valid part."""

    def __init__(self, file: Path, began_ns: int) -> None:
        self._began_ns = began_ns
        self._lines: list[bytes] = []
        self._thread = ThreadPool(1)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("wb", buffering=0)
        self._writer = gevent.spawn(self._run)

    def add(self, record: Record) -> None:
        self._lines.append(orjson.dumps(record.to_log_line(self._began_ns), option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        self._writer.kill()
        self._flush()
        self._file.close()
        self._thread.kill()

    def _run(self) -> None:
        while True:
            gevent.sleep(_EVERY_S)
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._thread.spawn(self._write, b"".join(lines)).get()

    def _write(self, lines: bytes) -> None:
        # Level 1: the worker's CPU time is worth more than a third of the bytes.
        self._file.write(gzip.compress(lines, compresslevel=1))
