"""Two running servers without a model, and real programs around them: Prometheus, nginx, Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.callers import KEYS
from tests.support.server import Server

SLOTS, PLACES, KEEPALIVE_S, STEP_MS, CONTEXT = 8, 4, 0.3, 20, 32768
"""Of each server: so small that a full one is soon had. Its KV cache holds one sequence as long as the context."""
STALL_TIMEOUT_S, BLOCK = 3, 16

_ENV = {
    "SLUICE_SYNTHETIC__ENABLED": "true",
    "SLUICE_SYNTHETIC__STEP_MS": str(STEP_MS),
    "SLUICE_ENGINE__MAX_MODEL_LEN": str(CONTEXT),
    "SLUICE_ENGINE__BLOCK_SIZE": str(BLOCK),
    # vLLM keeps one block for itself.
    "SLUICE_ENGINE__NUM_GPU_BLOCKS_OVERRIDE": str(CONTEXT // BLOCK + 1),
    "SLUICE_ADMISSION__MAX_CONCURRENT": str(SLOTS),
    "SLUICE_ADMISSION__MAX_WAITING": str(PLACES),
    "SLUICE_STREAMS__KEEPALIVE_S": str(KEEPALIVE_S),
    "SLUICE_STREAMS__STALL_TIMEOUT_S": str(STALL_TIMEOUT_S),
    "SLUICE_SERVER__DRAIN_TIMEOUT_S": "5",
}


def environment(folder: Path) -> dict[str, str]:
    """The settings of such a server; its keys are in that folder."""
    keys = folder / "keys.txt"
    keys.write_text(KEYS, encoding="utf-8")
    return {**_ENV, "SLUICE_SERVER__API_KEYS_FILE": str(keys)}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Both started at once, since each needs half a minute."""
    env = environment(tmp_path_factory.mktemp("keys"))
    servers = [Server(tmp_path_factory.mktemp(name), env=env) for name in ("first", "second")]
    try:
        for server in servers:
            server.wait_ready()
        yield servers[0], servers[1]
        # Signalled, so that engines which were started on the way go, too.
        assert [server.end() for server in servers] == [0, 0]
    finally:
        for server in servers:
            server.close()
