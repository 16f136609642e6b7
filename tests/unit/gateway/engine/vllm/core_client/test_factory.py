"""Clients of another engine, over stand-ins for the parts of vLLM that make them."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gateway.engine.vllm.core_client import factory
from tests.support.time import in_real_time


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments with which clients were made."""
    clients: list[tuple[Any, ...]] = []

    def from_cli_args(args: Any) -> Any:
        engine_args = SimpleNamespace(name=args)
        engine_args.create_engine_config = lambda usage_context: SimpleNamespace(
            args=engine_args,
            parallel_config=SimpleNamespace(data_parallel_size=1, data_parallel_size_local=1),
        )
        return engine_args

    def make_async_mp_client(config: Any, executor: Any, log_stats: bool, **client: Any) -> str:
        front_end = getattr(config.args, "_api_process_count", 1), getattr(config.args, "_api_process_rank", 0)
        clients.append((config.args.name, front_end, executor, log_stats, client))
        return f"client {len(clients)}"

    parts = {
        "vllm": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace(from_cli_args=from_cli_args)},
        "vllm.usage.usage_lib": {"UsageContext": SimpleNamespace(OPENAI_API_SERVER="server")},
        "vllm.v1.engine.core_client": {"EngineCoreClient": SimpleNamespace(make_async_mp_client=make_async_mp_client)},
        "vllm.v1.executor": {"Executor": SimpleNamespace(get_class=lambda _: "executor")},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    arguments = SimpleNamespace(propagate_flash_late_interaction=lambda *_: None)
    monkeypatch.setattr(factory, "cli_args", lambda: arguments)
    return clients


LLM = SimpleNamespace(log_stats=True)


@in_real_time
async def _make(attachment: Any) -> None:
    await factory.make_core_client("args", LLM, attachment)


def test_each_client_has_a_configuration_of_its_own(made: list[tuple[Any, ...]]) -> None:
    assert factory.make_config("args") is not factory.make_config("args")


def test_an_engine_of_this_process_is_started(made: list[tuple[Any, ...]]) -> None:
    _make(None)

    assert made == [("args", (1, 0), "executor", True, {})]


def test_a_worker_attaches_to_the_engine_of_its_parent(made: list[tuple[Any, ...]]) -> None:
    class Attachment:
        front_end = (3, 1)

        async def attach(self, make: Any) -> Any:
            return await make({"client_index": 1})

    _make(Attachment())

    assert made == [("args", (3, 1), "executor", True, {"client_index": 1})]
