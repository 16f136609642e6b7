from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import pytest

from gateway.domain import Caller, RequestStats
from gateway.engine.base import CURRENT_STATS
from tests.support.instrumentation import Recorder


@pytest.fixture(scope="session")
def parts() -> ModuleType:
    """The modules under test and the classes of vLLM that they use. Imported on first use: it takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tests.integration.gateway.engine.vllm.http_app.vllm_parts")


@pytest.fixture
def stats() -> Any:
    """The stats of the current request."""
    one = RequestStats(Caller(None, "req-1", 0, 0), Recorder())
    token = CURRENT_STATS.set(one)
    yield one
    CURRENT_STATS.reset(token)
