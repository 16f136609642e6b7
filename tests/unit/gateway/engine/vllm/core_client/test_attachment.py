"""What does not go with several workers is refused with a sentence that names it and the way out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.vllm.core_client.attachment import _ENVIRONMENT, refuse_for_workers
from gateway.engine.vllm.engine_process import _abort_client
from gateway.errors import SettingsError


def args(**given: Any) -> SimpleNamespace:
    usual = {
        "data_parallel_size": 1,
        "data_parallel_size_local": None,
        "data_parallel_rank": None,
        "data_parallel_backend": "mp",
        "data_parallel_external_lb": False,
        "data_parallel_hybrid_lb": False,
    }
    return SimpleNamespace(**(usual | given))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data_parallel_size": 2},
        {"data_parallel_size": 2, "data_parallel_size_local": 2},
        {"mm_tensor_ipc": "direct"},
    ],
)
def test_engines_of_this_machine_are_fine(given: dict[str, Any]) -> None:
    refuse_for_workers(args(**given))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_parallel_backend", "ray"),
        ("data_parallel_size_local", 0),
        ("data_parallel_rank", 0),
        ("data_parallel_external_lb", True),
        ("data_parallel_hybrid_lb", True),
        ("enable_elastic_ep", True),
        ("mm_tensor_ipc", "torch_shm"),
        ("enable_server_load_tracking", True),
    ],
)
def test_what_does_not_hold_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"engine\.{name}.*server\.workers to 1"):
        refuse_for_workers(args(**{name: value}))


@pytest.mark.parametrize("name", sorted(_ENVIRONMENT))
def test_vllms_variables_that_keep_something_in_one_process_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0")
    refuse_for_workers(args())
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=rf"{name}.*server\.workers"):
        refuse_for_workers(args())


def test_the_requests_of_a_dead_client_are_aborted_and_no_others() -> None:
    aborted: list[str] = []
    requests = {f"r{number}": SimpleNamespace(client_index=number % 3) for number in range(7)}
    engine = SimpleNamespace(scheduler=SimpleNamespace(requests=requests), abort_requests=aborted.extend)

    assert _abort_client(engine, 1) == 2
    assert aborted == ["r1", "r4"]
