"""Every route of the installed vLLM with all its switches on: the endpoints for clients are listed here by hand, all
others are for operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# In a process of its own: vLLM's app changes the logging of its process, and SageMaker's library keeps a registry.
SCRIPT = """
import json
from typing import get_args
from unittest.mock import MagicMock

from vllm import tasks
from vllm.entrypoints.launchers.app import build_app
from vllm.utils.argparse_utils import FlexibleArgumentParser

from gateway.engine.vllm.http_app import app as routes
from gateway.engine.vllm.compat.imports import cli_args

def leaves(kind):
    for one in get_args(kind):
        yield from leaves(one) if get_args(one) else [one]

profiler = json.dumps({"profiler": "torch", "torch_profiler_dir": "/tmp"})
flags = ["--enable-offline-docs", "--tokens-only", "--enable-scale-out", "--enable-tokenizer-info-endpoint"]
args = cli_args().make_arg_parser(FlexibleArgumentParser()).parse_args([*flags, "--profiler-config", profiler])
args.enable_fault_tolerance = True
app = build_app(args, tuple(leaves(tasks.SupportedTask)), MagicMock())
found = []
for route in app.routes:
    for method in getattr(route, "methods", None) or []:
        path = route.path.format(response_id="x", adapter_name="x")
        found.append((method, route.path, routes.classify(app, method, path).name))
print(json.dumps(found))
"""
SWITCHES = dict.fromkeys(("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ENABLE_COHERE_API"), "1")
FOR_CLIENTS = {
    "/classify",
    "/detokenize",
    "/generative_scoring",
    "/health",
    "/inference/v1/generate",
    "/invocations",
    "/load",
    "/openapi.json",
    "/ping",
    "/pooling",
    "/tokenize",
    "/tokenizer_info",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/derender",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/derender",
    "/v1/completions/render",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/models",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/v1/systemone",
    "/v2/embed",
    "/version",
}


@pytest.fixture(scope="module")
def routes() -> list[tuple[str, str, str]]:
    """Method, path and kind of each route."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **SWITCHES, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(one) for one in json.loads(done.stdout.strip().splitlines()[-1])]


def test_only_the_listed_endpoints_are_for_clients(routes: list[tuple[str, str, str]]) -> None:
    assert {path for _, path, kind in routes if kind != "OPERATOR"} == FOR_CLIENTS


def test_endpoints_that_generate_need_a_permit(routes: list[tuple[str, str, str]]) -> None:
    uses_engine = {path for _, path, kind in routes if kind == "USES_ENGINE"}

    assert {"/inference/v1/generate", "/invocations", "/pooling", "/v1/embeddings", "/v1/responses"} <= uses_engine


@pytest.mark.parametrize(
    "path",
    [
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/kv_event_sources",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/start_profile",
        "/stop_profile",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/adapters",
        "/adapters/{adapter_name}",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/collective_rpc",
        "/server_info",
        "/pause",
        "/resume",
        "/abort_requests",
        "/inference/v1/abort_requests",
        "/update_weights",
        "/get_world_size",
        "/fault_tolerance/apply",
    ],
)
def test_endpoints_that_run_the_server_are_for_operators(routes: list[tuple[str, str, str]], path: str) -> None:
    assert {kind for _, known, kind in routes if known == path} == {"OPERATOR"}
