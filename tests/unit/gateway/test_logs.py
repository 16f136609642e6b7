from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gateway.logs import ACCESS, JsonFormatter, PlainFormatter, StartupLog, configure, make_formatter

NAMES = ("", "sluice", "gateway", "uvicorn")


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in NAMES]
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    for logger, level in before:
        logger.setLevel(level)


def record(message: str, fields: dict[str, Any] | None = None, *, error: Exception | None = None) -> logging.LogRecord:
    raised = None
    if error is not None:
        try:
            raise error
        except Exception:
            raised = sys.exc_info()
    made = logging.LogRecord("sluice.access", logging.INFO, __file__, 1, message, (), raised)
    if fields is not None:
        made.fields = fields
    return made


def test_a_plain_line_shows_the_fields_that_have_a_value() -> None:
    line = PlainFormatter(stacks=True).format(
        record("request", {"id": "a", "status": 200, "model": None, "queue_s": 0.0})
    )

    assert line.endswith(" info    request id=a status=200 queue_s=0.0")


def test_a_json_line_is_one_object_with_all_fields() -> None:
    entry = orjson.loads(JsonFormatter(stacks=True).format(record("request", {"id": "a", "model": None})))

    assert entry.pop("ts") > 0
    assert entry == {"level": "info", "logger": "sluice.access", "message": "request", "id": "a", "model": None}


def test_json_writes_values_of_unknown_types() -> None:
    assert "PosixPath" not in JsonFormatter(stacks=True).format(record("m", {"kind": Exception("x")}))


@pytest.mark.parametrize("value", ["/a\nINFO all is well", "/a\r\nx", "\x1b[2J"])
@pytest.mark.parametrize("formatter", [PlainFormatter(stacks=False), JsonFormatter(stacks=True)])
def test_a_client_cannot_forge_a_log_line(formatter: logging.Formatter, value: str) -> None:
    """Paths come percent-decoded and model names come from bodies: both are the client's invention, line breaks and
    terminal codes included."""
    line = formatter.format(record("request", {"path": value}))

    assert not {"\n", "\r", "\x1b"} & set(line)


def test_stack_traces_are_shown_only_on_request() -> None:
    broken = record("it broke", error=RuntimeError("why"))

    assert "it broke: RuntimeError: why" in PlainFormatter(stacks=False).format(broken)
    assert "Traceback" not in PlainFormatter(stacks=False).format(broken)
    assert "Traceback" in PlainFormatter(stacks=True).format(broken)


def test_a_json_line_contains_its_stack_trace() -> None:
    line = JsonFormatter(stacks=True).format(record("it broke", error=RuntimeError("why")))

    assert "\n" not in line
    assert orjson.loads(line)["error"] == "RuntimeError: why"
    assert "Traceback" in orjson.loads(line)["stack"]


def test_the_settings_choose_the_formatter() -> None:
    assert isinstance(make_formatter(as_json=True, stacks=True), JsonFormatter)
    assert isinstance(make_formatter(as_json=False, stacks=True), PlainFormatter)


@pytest.mark.usefixtures("_logging_as_it_was")
def test_all_logs_go_to_stderr_and_those_of_libraries_from_warnings_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """stdout stays free for what a command prints."""
    configure("info", as_json=False)
    logging.getLogger("gateway.transports").info("ours")
    ACCESS.info("request")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("a warning")
    logging.getLogger("uvicorn.error").error("reported by us already")
    printed = capsys.readouterr()

    assert printed.out == ""
    assert [line.split(maxsplit=2)[2] for line in printed.err.splitlines()] == ["ours", "request", "a warning"]


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_quiet_level_silences_requests(capsys: pytest.CaptureFixture[str]) -> None:
    configure("error", as_json=True)
    ACCESS.info("request")
    logging.getLogger("gateway").error("trouble")

    assert orjson.loads(capsys.readouterr().err)["message"] == "trouble"


def test_the_startup_log_shows_stages_with_their_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sluice")
    watch = StartupLog()
    watch.begin("loading")

    assert re.fullmatch(r"\[ *\d+\.\d s\] loading", caplog.messages[0])


@pytest.mark.usefixtures("_logging_as_it_was")
def test_request_lines_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", as_json=False, requests=False)
    ACCESS.info("request", extra={"fields": {"path": "/v1/models"}})
    configure("info", as_json=False, quiet_paths=["/ping"])
    ACCESS.info("request", extra={"fields": {"path": "/ping"}})
    ACCESS.info("request", extra={"fields": {"path": "/v1/chat"}})
    configure("info", as_json=False)
    ACCESS.info("request", extra={"fields": {"path": "/ping"}})

    assert [line.split("path=")[1] for line in capsys.readouterr().err.splitlines()] == ["/v1/chat", "/ping"]


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_long_stage_is_logged_again_until_the_next_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", as_json=False)
    watch = StartupLog(every_s=0.02)
    watch.begin("importing vLLM")
    thread = watch._reminding
    assert thread is not None
    for _ in range(500):
        if "still importing vLLM, for 0 s now" in (printed := capsys.readouterr().err):
            break
        thread.join(0.01)
    assert "still importing vLLM" in printed
    watch.begin("loading")
    watch.finish("ready")
    thread.join(5)

    assert not thread.is_alive()
    assert capsys.readouterr().err.splitlines()[-1].endswith("ready")
