"""The server with small limits that the tests of limits and of deadlines share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.faults.conftest import SYNTHETIC, Shared, Wanted
from tests.support.engine_probe import EngineProbe
from tests.support.server import Server
from tests.support.stream_client import completion

HEADER_TIMEOUT_S = 2.0
BODY_TIMEOUT_S = 3.0
STEP_MS = 20
MAX_BODY_BYTES = 64 * 2**10
FOREVER = 20_000
RESPONSES = "/v1/responses"
# Longer than the deadlines here, so that a queued request gets no keep-alive before.
KEEPALIVE_S = 0.8
EVERYONE = {**completion(0, 100, temperature=1), "n": int(SYNTHETIC["SLUICE_ADMISSION__MAX_CONCURRENT"])}
"""Asks for every slot. While a request runs, it waits, and no other overtakes it."""


@dataclass
class Target:
    server: Server
    probe: EngineProbe


SERVERS = {
    "limits": Wanted(
        lambda _: {
            **SYNTHETIC,
            "SLUICE_SYNTHETIC__STEP_MS": str(STEP_MS),
            "SLUICE_SERVER__HEADER_TIMEOUT_S": str(HEADER_TIMEOUT_S),
            "SLUICE_STREAMS__KEEPALIVE_S": str(KEEPALIVE_S),
            "SLUICE_SERVER__MAX_BODY_BYTES": str(MAX_BODY_BYTES),
            "SLUICE_SERVER__BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
        },
        probe=True,
    )
}


def limited(fleet: dict[str, Shared]) -> Iterator[Target]:
    """The server, which is still alive and has logged no traceback at the end."""
    server, probe = fleet["limits"].server, fleet["limits"].probe
    assert probe is not None
    yield Target(server, probe)
    assert server.running(), server.stderr()
    assert "Traceback" not in server.stderr()
