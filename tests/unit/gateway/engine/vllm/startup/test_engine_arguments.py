"""From settings to vLLM's arguments, as far as that needs no vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway.engine.vllm.startup.engine_arguments import _SYNTHETIC, _use_synthetic_executor
from gateway.engine.vllm.synthetic.timing import SETTINGS_KEY
from gateway.errors import SettingsError


def test_the_numbers_of_the_synthetic_engine_travel_beside_the_users() -> None:
    args = SimpleNamespace(distributed_executor_backend=None, additional_config={"theirs": 1})
    _use_synthetic_executor(args, {"step_ms": 2.0})

    assert args.distributed_executor_backend == _SYNTHETIC
    assert args.additional_config == {"theirs": 1, SETTINGS_KEY: {"step_ms": 2.0}}


def test_another_executor_beside_the_synthetic_one_is_refused() -> None:
    """A silent choice of one would run, or leave out, a model against the operator's intent."""
    args = SimpleNamespace(distributed_executor_backend="mp", additional_config=None)

    with pytest.raises(SettingsError, match="distributed_executor_backend=mp"):
        _use_synthetic_executor(args, {})
