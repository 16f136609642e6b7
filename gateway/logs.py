"""Logging: a formatter for terminals, one for JSON, the logger of request lines, and the log of a start."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Collection
from typing import Any

import orjson

from gateway.bounded_text import shortened

_LONGEST = 200
# Of a message, which may quote a request.
_LONGEST_MESSAGE = 4000

ACCESS = logging.getLogger("sluice.access")


class PlainFormatter(logging.Formatter):
    """`12:00:00 info     message key=value ...`, and stack traces if `stacks` is set."""

    def __init__(self, *, stacks: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._stacks = stacks

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        line = f"{self.formatTime(record, self.datefmt)} {record.levelname.lower():<7} "
        line += shortened(record.getMessage(), _LONGEST_MESSAGE)
        if fields:
            line += "".join(f" {name}={_word(value)}" for name, value in fields.items() if value is not None)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line += f": {type(error).__name__}: {shortened(str(error), _LONGEST_MESSAGE)}"
            if self._stacks:
                line += "\n" + self.formatException(record.exc_info)
        return line


def _word(value: Any) -> str:
    """A field's value as one word, so that a client, which chooses some values, cannot forge a line."""
    text = str(value)
    return text if text.isprintable() and " " not in text and len(text) <= _LONGEST else repr(text[:_LONGEST])


class JsonFormatter(logging.Formatter):
    """One JSON object a line, times in Unix seconds, and stack traces if `stacks` is set."""

    def __init__(self, *, stacks: bool) -> None:
        super().__init__()
        self._stacks = stacks

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(record.getMessage(), _LONGEST_MESSAGE),
            **(getattr(record, "fields", None) or {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            entry["error"] = f"{type(error).__name__}: {shortened(str(error), _LONGEST_MESSAGE)}"
            if self._stacks:
                entry["stack"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


def make_formatter(*, as_json: bool, stacks: bool) -> logging.Formatter:
    """The formatter for the settings. The logging configuration of engine processes names this function."""
    return JsonFormatter(stacks=stacks) if as_json else PlainFormatter(stacks=stacks)


def configure(level: str, as_json: bool, *, requests: bool = True, quiet_paths: Collection[str] = ()) -> None:
    """Set up this process's logging, to stderr; from other libraries only warnings and errors. `requests`: log a line
    for each request, except those for `quiet_paths`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(as_json=as_json, stacks=True))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    for name in ("sluice", "gateway"):
        logging.getLogger(name).setLevel(level.upper())
    # uvicorn logs malformed requests and aborted responses, which this server has already handled and logged.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    ACCESS.disabled = not requests
    quiet = frozenset(quiet_paths)
    ACCESS.filters[:] = [lambda record: getattr(record, "fields", {}).get("path") not in quiet] if quiet else []


class StartupLog:
    """Logs each stage of a start when it begins, with the seconds since the process began, and every `every_s` seconds
    that the stage still runs: from a thread, because stages block the caller's."""

    def __init__(self, every_s: float = 15.0) -> None:
        self._began = time.monotonic()
        self._every_s = every_s
        self._stage = ""
        self._stage_began = self._began
        self._news = threading.Event()
        self._reminding: threading.Thread | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def begin(self, stage: str) -> None:
        """Log that a stage begins."""
        self._log(stage)
        self._stage, self._stage_began = stage, time.monotonic()
        self._news.set()
        if self._reminding is None:
            self._reminding = threading.Thread(target=self._remind, name="sluice-progress", daemon=True)
            self._reminding.start()

    def finish(self, stage: str) -> None:
        """Log the end of the start."""
        self._stage = ""
        self._news.set()
        self._log(stage)

    def _log(self, text: str) -> None:
        logging.getLogger("sluice").info("[%5.1f s] %s", self.elapsed_s, text)

    def _remind(self) -> None:
        while self._stage:
            if self._news.wait(self._every_s):
                self._news.clear()
            elif self._stage:
                self._log(f"still {self._stage}, for {time.monotonic() - self._stage_began:.0f} s now")
        self._reminding = None
