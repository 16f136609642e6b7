"""One client against all: what a client sends may cost its own request, never others'.

Thirty healthy streams are read all the time and checked to the last token, a probe requests `/livez` every 5 ms, and
beside them one client with a key of its own does its worst. The small size has the attacks that once stopped a server;
the full one has all of them, and longer ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import SYNTHETIC, Shared, Wanted
from tests.support.attacks import ATTACKS, SMALL, Target
from tests.support.background_streams import BackgroundStreams
from tests.support.livez_probe import LivezProbe
from tests.support.server import ASK, MODEL, Server, poll

pytestmark = pytest.mark.timeout(600)

STREAMS, TOKENS, STEP_MS = 30, 100, 20
# Figures of a machine that does nothing else; what fails a run is a server that was stopped, not a noisy neighbour.
LIVEZ_GOAL_MS, LIVEZ_LIMIT_MS = 250, 1500
GAP_GOAL_S, GAP_LIMIT_S = 0.5, 2.0
# The allocator keeps some of what the largest bodies of all kinds took; the same again takes no more.
MEMORY_LIMIT_MIB = 400

SERVERS = {
    "one against all": Wanted(
        lambda _: {
            **SYNTHETIC,
            "SLUICE_SYNTHETIC__STEP_MS": str(STEP_MS),
            "SLUICE_ENGINE__MAX_MODEL_LEN": "131072",
            "SLUICE_SUPERVISOR__MAX_RESTARTS": "3",
            "SLUICE_STREAMS__STALL_TIMEOUT_S": "30",
        },
        keys=True,
    )
}


@dataclass(frozen=True)
class Scene:
    """The server, those who are well, and the one who is not."""

    server: Server
    streams_beside: BackgroundStreams
    livez: LivezProbe
    target: Target


@pytest.fixture(scope="module")
def scene(fleet: dict[str, Shared], full: bool, figure: Any) -> Iterator[Scene]:
    shared = fleet["one against all"]
    server = shared.server
    engine = server.engine_pid()
    server.http.headers.update(shared.keys["anna"])
    before_mib = resident_mib(server.pid)
    with (
        LivezProbe(server.port) as livez,
        BackgroundStreams(server.port, STREAMS, TOKENS, shared.keys["anna"]) as streams_beside,
    ):
        yield Scene(server, streams_beside, livez, Target(server.port, shared.keys["bert"], 20.0 if full else 4.0))
        assert not streams_beside.lap().wrong
    server.wait_idle()
    assert server.running()
    assert server.engine_pid() == engine, "an attack cost the engine its life"
    assert "Traceback" not in server.stderr()
    grown_mib = resident_mib(server.pid) - before_mib
    figure(
        "one client",
        "one client against all: memory after all attacks",
        f"{grown_mib:+.0f} MiB",
        f"{MEMORY_LIMIT_MIB} MiB",
    )
    assert grown_mib < MEMORY_LIMIT_MIB


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", ATTACKS if metafunc.config.getoption("--faults") == "full" else SMALL)


def test_one_client_cannot_decide_the_fate_of_others(scene: Scene, name: str, figure: Any) -> None:
    """The healthy streams stay exact and without long silences, `/livez` answers, and five seconds after the attack the
    server has nothing left of it: no slot, no queue, an idle engine but for the healthy ones, and it serves."""
    server = scene.server
    scene.streams_beside.lap()
    scene.livez.lap()

    answered = ATTACKS[name](scene.target)
    livez = scene.livez.lap()
    lap = scene.streams_beside.lap()

    poll("slots are free again", lambda: server.sample("sluice_streams_active") <= STREAMS, 6, 0.2)
    poll("the engine has nothing else", lambda: server.sample("vllm:num_requests_running") <= STREAMS, 6, 0.2)
    began_s = time.monotonic()
    served = server.post(model=MODEL, messages=ASK, max_tokens=2, headers=scene.target.headers)
    served_s = time.monotonic() - began_s
    figure(
        "one client",
        f"one client against all: {name}",
        f"{answered}; longest gap {lap.longest_gap_s * 1e3:.0f} ms, /livez {livez['max_ms']:.0f} ms (p99 "
        f"{livez['p99_ms']:.0f}), {resident_mib(server.pid):.0f} MiB, next request {served_s:.2f} s",
        f"gap {GAP_GOAL_S * 1e3:.0f}, /livez {LIVEZ_GOAL_MS} ms",
    )
    assert not lap.wrong, lap.wrong[:3]
    assert livez["asked"] > 1, "the probe got no answer"
    assert livez["max_ms"] < LIVEZ_LIMIT_MS
    assert lap.longest_gap_s < GAP_LIMIT_S
    assert served.status_code == 200, served.text
    assert server.http.get("/readyz").status_code == 200
