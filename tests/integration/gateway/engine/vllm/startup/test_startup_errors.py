"""A failed start of the engine, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

_START = """
import json, logging.config, os
from gateway.engine.vllm.startup import environment, startup_errors
from gateway.engine.vllm.startup.plan import EnginePlan
left = environment.prepare_process(EnginePlan(engine={"model": "m"}))
with open(os.environ["VLLM_LOGGING_CONFIG_PATH"]) as file:
    logging.config.dictConfig(json.load(file))
try:
    raise ValueError("To serve at least one request (9 GiB KV cache is needed). See https://x for more details.")
except ValueError:
    logging.getLogger("vllm.v1.engine.core").exception("EngineCore failed to start.")
print(startup_errors.explain(RuntimeError("Engine core initialization failed. See root cause above."), left, "m"))
"""


def test_the_log_of_an_engine_at_its_failed_start_is_the_cause() -> None:
    """Through the logging configuration that its process is given."""
    done = subprocess.run(
        [sys.executable, "-c", _START], capture_output=True, text=True, check=True, env={"PATH": ""}, timeout=60
    )

    assert "not enough memory for the KV cache. Raise kv_cache_memory_bytes" in done.stdout
    assert "9 GiB KV cache is needed" in done.stdout
