"""Time comes from `gateway.clock`: code that reads the machine's clocks by itself is listed here, with its reason.
Durations that follow the wall clock end early or never when it jumps."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

ROOT = Path(gateway.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

WALL = {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime", "now", "utcnow", "today"}
MONOTONIC = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}

KNOWN = {
    # The one place.
    ("clock.py", "time.time"),
    ("clock.py", "time.monotonic"),
    # How long a start takes, logged before there is a clock.
    ("logs.py", "time.monotonic"),
    # The protocol's deadline for headers; the loop's time is what Clock.now is.
    ("transports/http/lingering_close.py", "loop.time"),
    ("transports/http/request_limits.py", "loop.time"),
    ("transports/http/connection.py", "loop.time"),
    # The `created` stamp of an answer, as vLLM makes it.
    ("engine/vllm/output/eligibility.py", "time.time"),
    # The steps of an engine that is not there, in the engine's process.
    ("engine/vllm/synthetic/timing.py", "time.monotonic"),
    # A script that is run by hand.
    ("demo/train.py", "time.monotonic"),
}


def label(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def asked(tree: ast.Module) -> Iterator[str]:
    """Everything in a file that may be the time: `time.x`, `datetime.x`, `date.x`, and `time()` of any loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            yield from (f"{node.module}.{name.name}" for name in node.names if name.name in WALL | MONOTONIC)
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if name in ("time", "datetime", "date", "uvloop") and node.attr in WALL | MONOTONIC:
            yield f"{name}.{node.attr}"
        elif node.attr == "time":
            yield "loop.time"


@pytest.mark.parametrize("file", FILES, ids=label)
def test_the_time_comes_from_the_clock(file: Path) -> None:
    found = {(label(file), what) for what in asked(ast.parse(file.read_text(encoding="utf-8")))}

    assert found <= KNOWN


def test_every_exception_is_still_needed() -> None:
    """An exception that is not needed hides the next one."""
    found = {(label(file), what) for file in FILES for what in asked(ast.parse(file.read_text(encoding="utf-8")))}

    assert found == KNOWN


@pytest.mark.parametrize("file", FILES, ids=label)
def test_the_wall_clock_is_for_stamps_only(file: Path) -> None:
    """`Clock.wall` is asked where a request's arrival is written down for vLLM's metrics, and nowhere else."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "wall"]

    assert not uses or label(file) == "transports/http/middleware.py"
