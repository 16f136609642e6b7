from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gateway.errors import SettingsError

TO_CONNECT = "Waiting for %d local, %d remote core engine proc(s) to connect."
TO_START = "Waiting for %d local, %d remote core engine proc(s) to start."


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, beside a vLLM that has nothing but this limit; and a clock that it looks at."""
    vllm = ModuleType("vllm")
    vllm.envs = SimpleNamespace(VLLM_ENGINE_READY_TIMEOUT_S=100)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    module = importlib.import_module("gateway.engine.vllm.core_client.remote_engines")
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(module, "SystemClock", lambda: SimpleNamespace(now=lambda: now.s))
    module.now = now
    yield module
    del module.now


def a_config(local: int | None) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            data_parallel_size=4,
            data_parallel_size_local=local,
            data_parallel_master_ip="10.0.0.1",
            data_parallel_rpc_port=13345,
        )
    )


def test_engines_that_are_missing_are_named_and_not_waited_for_without_end(
    remote: Any, caplog: pytest.LogCaptureFixture
) -> None:
    speaker = logging.getLogger("vllm.v1.engine.utils")
    speaker.setLevel(logging.ERROR)
    with remote.bounded_wait(a_config(1)):
        for passed_s in range(0, 100, 10):
            remote.now.s = 1000.0 + passed_s
            speaker.debug(TO_CONNECT if passed_s < 50 else TO_START, 0, 3)
        remote.now.s += 11
        with pytest.raises(SettingsError, match="3 engines on other machines did not start") as caught:
            speaker.debug(TO_START, 0, 3)
    assert "sluice engine" in str(caught.value)
    assert [record.getMessage() for record in caplog.records] == [
        "30 s: waiting for 3 engines on other machines to connect (10.0.0.1:13345)",
        "60 s: waiting for 3 engines on other machines to start (10.0.0.1:13345)",
        "90 s: waiting for 3 engines on other machines to start (10.0.0.1:13345)",
    ], "and vLLM's debug level is not shown"
    assert (speaker.level, speaker.filters) == (logging.ERROR, [])
    speaker.setLevel(logging.NOTSET)


def test_engines_of_this_machine_have_no_such_limit(remote: Any, caplog: pytest.LogCaptureFixture) -> None:
    speaker = logging.getLogger("vllm.v1.engine.utils")
    with remote.bounded_wait(a_config(1)):
        for _ in range(10):
            remote.now.s += 60
            speaker.debug(TO_START, 1, 0)
    for local in (None, 4):
        with remote.bounded_wait(a_config(local)):
            assert speaker.filters == []
    assert caplog.records == []
