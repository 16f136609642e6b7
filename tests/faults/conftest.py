"""Deliberate faults against real servers. The end of a run prints each figure next to its bound, below the sentence of
its goal.

Two sizes: `ci` (part of `make test`) and `full` (`make faults`), chosen with `--faults`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.transports.common.api_keys import new_key
from tests.support.engine_probe import EngineProbe
from tests.support.server import Server

SYNTHETIC = {
    "SLUICE_SYNTHETIC__ENABLED": "true",
    "SLUICE_ENGINE__MAX_MODEL_LEN": "32768",
    "SLUICE_ADMISSION__MAX_CONCURRENT": "4096",
    "SLUICE_ADMISSION__MAX_WAITING": "4096",
    "SLUICE_SUPERVISOR__MAX_RESTARTS": "1000",
}
"""Settings of a server without a model; tests add their own."""

GOALS = {
    "cancellation": "A client that leaves frees the engine at once, in every phase; other streams are not delayed.",
    "data parallel": "When one of several data-parallel engines dies, every stream pauses and continues.",
    "deadly request": "A request that kills one engine after another fails alone.",
    "drain": "After SIGTERM no answer is wrong, none seems complete that is not, and the process exits with 0 in time.",
    "engine death": "No stream loses, repeats or contradicts a token when its engine dies; the pause is the restart.",
    "hung engine": "An engine is restarted when it hangs, and not because the gateway itself was paused.",
    "idle stream": "A stream without events costs little memory and CPU, and its keep-alives are on time.",
    "keep-alive": "Common clients read streams with keep-alives without an error and notice a broken stream.",
    "limits": "A client that sends too much or too slowly is cut off in time, at a bounded cost in memory.",
    "one client": "The worst that one client sends costs its own request, never the streams of others.",
    "resets": "Readers that stop and then reset their connections leave no slot taken.",
    "resume": "A stream that was cut and resumed has the bytes of one that was not, within the limits of retention.",
    "slow reader": "A reader that stops costs bounded memory, delays no other stream and is dropped in time.",
    "vanished peer": "A peer that vanishes without closing its connection is noticed, idle or not.",
    "wall clock": "Jumps of the wall clock change nothing.",
}
"""What the figures are held against, one sentence a goal."""

_FIGURES: dict[str, list[tuple[str, str, str]]] = {goal: [] for goal in GOALS}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `full` in the small size, and with it the servers that only it needs."""
    if config.getoption("--faults") != "full":
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = {goal: figures for goal, figures in _FIGURES.items() if figures}
    if found:
        terminalreporter.section("fault suite: figures and goals")
        width = max(len(what) for figures in found.values() for what, _, _ in figures)
        for goal, figures in found.items():
            terminalreporter.write_line(GOALS[goal])
            for what, figure, bound in figures:
                terminalreporter.write_line(f"  {what:<{width}}  {figure}  (goal: {bound})")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the full size."""
    return bool(request.config.getoption("--faults") == "full")


@pytest.fixture(scope="session")
def figure() -> Callable[[str, str, str, str], None]:
    """Print a figure at the end of the run: a key of GOALS, what was measured, the figure, its bound."""

    def note(goal: str, what: str, found: str, bound: str) -> None:
        _FIGURES[goal].append((what, found, bound))

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


@dataclass(frozen=True)
class Wanted:
    """A server that several tests share. `env` makes its settings, given whether this is the full
    size; `keys` and `probe` as in `Shared`; `full` is one for the full size only."""

    env: Callable[[bool], dict[str, str]]
    keys: bool = False
    probe: bool = False
    full: bool = False


@dataclass(frozen=True)
class Shared:
    """A server that several tests use, one after the other. With `keys`, each client names one of them."""

    server: Server
    keys: dict[str, dict[str, str]]
    probe: EngineProbe | None

    @property
    def me(self) -> dict[str, str]:
        """The headers of the first tenant."""
        return self.keys["anna"]


KEEPALIVE_S, STALL_TIMEOUT_S, RETENTION_S, STREAM_BYTES, TOTAL_BYTES, STEP_MS = 3.0, 5.0, 3.0, 2**17, 2**19, 20
"""Of the shared synthetic server: as small as the promises about them allow to be tested soon."""

POISON_TOKEN = 299
"""Engines of the shared synthetic server die of prompts that begin with it."""

_SHARED = {
    # A keep-alive comment falls between a peer's last sign of life and the kernel's first probe.
    "patient": Wanted(
        lambda _: {
            **SYNTHETIC,
            "SLUICE_SERVER__HOST": "0.0.0.0",
            "SLUICE_SYNTHETIC__STEP_MS": "10",
            "SLUICE_STREAMS__KEEPALIVE_S": "4",
        }
    ),
    "synthetic": Wanted(
        lambda _: {
            **SYNTHETIC,
            "SLUICE_SYNTHETIC__STEP_MS": str(STEP_MS),
            "SLUICE_SYNTHETIC__POISON_TOKEN": str(POISON_TOKEN),
            "SLUICE_STREAMS__KEEPALIVE_S": str(KEEPALIVE_S),
            "SLUICE_STREAMS__STALL_TIMEOUT_S": str(STALL_TIMEOUT_S),
            "SLUICE_STREAMS__RETENTION_S": str(RETENTION_S),
            "SLUICE_STREAMS__MAX_BYTES": str(STREAM_BYTES),
            "SLUICE_STREAMS__MAX_TOTAL_BYTES": str(TOTAL_BYTES),
        },
        keys=True,
    ),
    # So few slots that a queue soon forms; a keep-alive every 50 ms.
    "demo": Wanted(
        lambda _: {
            "SLUICE_ADMISSION__MAX_CONCURRENT": "8",
            "SLUICE_ENGINE__REASONING_PARSER": "qwen3",
            # Otherwise the parser takes a text without thinking for thoughts.
            "SLUICE_ENGINE__DEFAULT_CHAT_TEMPLATE_KWARGS": '{"enable_thinking": false}',
            "SLUICE_STREAMS__KEEPALIVE_S": "0.05",
            "SLUICE_STREAMS__RETENTION_S": "600",
            "SLUICE_SUPERVISOR__MAX_RESTARTS": "1000",
            "SLUICE_SUPERVISOR__HANG_TIMEOUT_S": "3",
        }
    ),
}
"""Those that several files use, by the fixture that gives them. Those of one file are its own `SERVERS`."""


def _keys(file: Path) -> dict[str, dict[str, str]]:
    made = {name: new_key(name) for name in ("anna", "bert")}
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    return {name: {"Authorization": f"Bearer {key}"} for name, (key, _) in made.items()}


@pytest.fixture(scope="session")
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, full: bool
) -> Iterator[dict[str, Shared]]:
    """The servers that this run's tests want, by name. They start at the same time, because a start is mostly waiting;
    but for the patient one: a test that uses it waits long for little, and the others start meanwhile."""
    items = request.session.items
    names = {name for item in items for name in getattr(item, "fixturenames", ())}
    wanted = {name: one for name, one in _SHARED.items() if name in names}
    for item in items:
        wanted |= getattr(getattr(item, "module", None), "SERVERS", {})
    servers: dict[str, Shared] = {}
    try:
        for name, one in wanted.items():
            if one.full and not full:
                continue
            folder = tmp_path_factory.mktemp(name)
            env = one.env(full)
            keys = _keys(folder / "keys") if one.keys else {}
            if keys:
                env["SLUICE_SERVER__API_KEYS_FILE"] = str(folder / "keys")
            probe = EngineProbe(folder) if one.probe else None
            if probe is not None:
                env |= probe.env
            servers[name] = Shared(Server(folder, env=env), keys, probe)
            if name == "patient":
                servers[name].server.wait_ready()
        for shared in servers.values():
            shared.server.wait_ready()
        yield servers
    finally:
        for shared in servers.values():
            shared.server.close()


@pytest.fixture(scope="session")
def synthetic(fleet: dict[str, Shared]) -> Shared:
    """A server without a model, with API keys and small limits."""
    return fleet["synthetic"]


@pytest.fixture(scope="session")
def patient(fleet: dict[str, Shared]) -> Server:
    """A server without a model that listens everywhere and has the usual stall timeout."""
    return fleet["patient"].server


@pytest.fixture(scope="session")
def demo(fleet: dict[str, Shared]) -> Server:
    """A server with the demo model."""
    return fleet["demo"].server
