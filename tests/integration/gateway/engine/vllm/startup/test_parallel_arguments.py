"""vLLM's parallelism is vLLM's: its settings reach its configuration under its own names. Looked at in a process of
its own, because vLLM takes ten seconds to import and is set up through the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_SCRIPT = """
import asyncio, json, sys, tempfile
from pathlib import Path
from gateway.engine_plan import plan_engine
from gateway.clock import SystemClock
from gateway.engine.vllm.startup import engine_arguments, environment, launcher
from gateway.errors import SettingsError
from gateway.settings import Settings

def one(engine, flags, synthetic):
    settings = Settings.model_validate({"synthetic": {"enabled": synthetic}, "engine": engine})
    plan = plan_engine(settings, None, flags, None, lambda _: None)
    if "ray" in engine.values():
        try:
            asyncio.run(launcher.start(plan, SystemClock()))
        except SettingsError as error:
            return str(error)
    environment.set_environment(plan, Path(tempfile.mkdtemp()) / "words")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    args = AsyncEngineArgs.from_cli_args(engine_arguments.parse_args(plan))
    config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER).parallel_config
    names = ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local",
             "data_parallel_rpc_port", "data_parallel_hybrid_lb", "world_size", "distributed_executor_backend"]
    return {name: getattr(config, name) for name in names} | {"address": config.data_parallel_master_ip}

print(json.dumps([one(**case) for case in json.load(sys.stdin)]))
"""

_CASES: dict[str, dict[str, Any]] = {
    "tensor": {"engine": {"tensor_parallel_size": 2}},
    "both": {"engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}},
    "flag": {"engine": {"tensor_parallel_size": 4}, "flags": ["--tensor-parallel-size", "2"]},
    "tensor without a model": {"engine": {"tensor_parallel_size": 2}, "synthetic": True},
    "data": {"engine": {"data_parallel_size": 2}, "synthetic": True},
    "nodes": {
        "engine": {
            "data_parallel_size": 4,
            "data_parallel_size_local": 1,
            "data_parallel_address": "10.0.0.1",
            "data_parallel_rpc_port": 13345,
        },
        "synthetic": True,
    },
    "ray": {"engine": {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}},
    "data over ray": {"engine": {"data_parallel_size": 2, "data_parallel_backend": "ray"}, "synthetic": True},
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What vLLM's configuration holds, or the error for the user, by case."""
    cases = [{"flags": [], "synthetic": False, **case} for case in _CASES.values()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(_CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(
    ("case", "holds"),
    [
        ("tensor", {"tensor_parallel_size": 2, "world_size": 2, "distributed_executor_backend": "mp"}),
        ("both", {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "world_size": 4}),
        ("flag", {"tensor_parallel_size": 2}),
        ("tensor without a model", {"tensor_parallel_size": 2}),
        ("data", {"data_parallel_size": 2, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": False}),
        (
            "nodes",
            {
                "data_parallel_size": 4,
                "data_parallel_size_local": 1,
                "address": "10.0.0.1",
                "data_parallel_rpc_port": 13345,
            },
        ),
    ],
)
def test_settings_reach_vllms_configuration(found: dict[str, Any], case: str, holds: dict[str, Any]) -> None:
    assert {name: found[case][name] for name in holds} == holds


@pytest.mark.parametrize("case", ["ray", "data over ray"])
def test_a_missing_ray_is_reported_in_one_sentence(found: dict[str, Any], case: str) -> None:
    assert found[case] == (
        "The engine could not start: Ray is asked for, but not installed in this environment (`pip install ray`)."
    )
