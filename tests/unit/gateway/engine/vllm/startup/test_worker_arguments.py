"""Arguments that do not go with several workers are refused with a sentence that names them and the way out."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.vllm.startup.engine_arguments import _ENVIRONMENT, worker_problems


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
    assert worker_problems(args(**given)) == []


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
def test_each_argument_that_needs_one_worker_is_refused(name: str, value: Any) -> None:
    (problem,) = worker_problems(args(**{name: value}))

    assert re.match(rf"engine\.{name}.*server\.workers to 1", problem)


@pytest.mark.parametrize("name", sorted(_ENVIRONMENT))
def test_vllms_variables_that_keep_something_in_one_process_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0")
    assert worker_problems(args()) == []

    monkeypatch.setenv(name, "1")
    (problem,) = worker_problems(args())

    assert re.match(rf"{name}.*server\.workers", problem)
