"""The variables and the logging configuration that vLLM gets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.vllm import engine_process
from gateway.engine.vllm.startup.environment import set_environment
from gateway.engine.vllm.startup.plan import EnginePlan


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("VLLM_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def prepared(folder: Path, **plan: Any) -> dict[str, Any]:
    """The logging configuration for a plan."""
    set_environment(EnginePlan(engine=plan.pop("engine", {}), **plan), folder / "errors.log")
    config: dict[str, Any] = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text(encoding="utf-8"))
    return config


def test_variables_of_the_user_stay(tmp_path: Path) -> None:
    os.environ["VLLM_NO_USAGE_STATS"] = "0"
    os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "0"
    prepared(tmp_path)

    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"
    assert os.environ["VLLM_RPC_BASE_PATH"] == str(tmp_path)
    assert os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] == "1", "the supervisor decides this"


@pytest.mark.parametrize(("level", "value"), [("info", "1"), ("debug", engine_process.WITH_STACK_TRACES)])
def test_processes_are_marked_for_the_plugin(tmp_path: Path, level: str, value: str) -> None:
    prepared(tmp_path, log_level=level)

    assert os.environ[engine_process.VARIABLE] == value


def test_the_demo_model_runs_in_one_process_offline(tmp_path: Path) -> None:
    prepared(tmp_path)

    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ

    prepared(tmp_path, is_demo=True)

    assert (os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"], os.environ["HF_HUB_OFFLINE"]) == ("0", "1")


def test_errors_go_to_the_log_from_which_a_failed_start_is_explained(tmp_path: Path) -> None:
    config = prepared(tmp_path)

    assert config["handlers"]["error_log"]["filename"] == str(tmp_path / "errors.log")
    assert config["loggers"]["vllm"]["handlers"] == ["error_log", "console"]
    assert config["loggers"]["vllm.parser"]["handlers"] == ["console"], "clients cause those"
    assert config["handlers"]["console"]["filters"] == ["expected"]


def test_debugging_shows_everything(tmp_path: Path) -> None:
    config = prepared(tmp_path, log_level="debug")

    assert config["loggers"]["vllm"]["level"] == "DEBUG"
    assert config["loggers"]["vllm.entrypoints"]["level"] == "DEBUG"
    assert config["handlers"]["console"]["filters"] == []


@pytest.mark.parametrize(
    "plan", [{"flags": ["--enable-log-requests"]}, {"engine": {"enable-log-requests": True}}, {}], ids=str
)
def test_lines_that_a_flag_asks_for_are_shown(tmp_path: Path, plan: dict[str, Any]) -> None:
    shown = prepared(tmp_path, **plan)["loggers"].get("vllm.v1.engine.async_llm")

    assert shown == ({"level": "INFO"} if plan else None)
