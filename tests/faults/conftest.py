"""Faults on purpose, against real servers. Each test prints its figure next to its goal at the end of the run.

Two sizes: `ci` (part of `make test`) and `full` (`make faults`), chosen with `--faults`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.server import Server

SYNTHETIC = {
    "SLUICE_SYNTHETIC__ENABLED": "true",
    "SLUICE_ENGINE__MAX_MODEL_LEN": "32768",
    "SLUICE_ADMISSION__MAX_CONCURRENT": "4096",
    "SLUICE_ADMISSION__MAX_WAITING": "4096",
    "SLUICE_SUPERVISOR__MAX_RESTARTS": "1000",
}
"""Settings of a server without a model; tests add their own."""

_FIGURES: list[tuple[str, str, str, str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("fault suite: figures and goals")
        width = max(len(what) for _, what, _, _ in _FIGURES)
        for goal, what, figure, bound in _FIGURES:
            terminalreporter.write_line(f"{goal:<4} {what:<{width}}  {figure}  (goal: {bound})")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the full size."""
    return bool(request.config.getoption("--faults") == "full")


@pytest.fixture(scope="session")
def figure() -> Callable[[str, str, str, str], None]:
    """Print a figure at the end of the run: the goal's number, what was measured, the figure, the goal."""

    def note(goal: str, what: str, found: str, bound: str) -> None:
        _FIGURES.append((goal, what, found, bound))

    return note


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server with these arguments and settings and wait until it is ready; it is ended with the test."""
    servers: list[Server] = []

    def start(*args: str, env: dict[str, str] | None = None) -> Server:
        one = Server(tmp_path_factory.mktemp("server"), *args, env=env)
        servers.append(one)
        one.wait_ready()
        return one

    yield start
    for one in servers:
        one.close()
