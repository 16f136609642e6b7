"""Every module with logic has a test file of its name, in the same folder below tests/unit or tests/integration.

Exceptions are listed here, each with the test that covers it, or with the reason why it has none.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LEVELS = ("unit", "integration")

_DEMO = "tests/unit/gateway/demo/test_demo.py"
_REGISTRY = "tests/unit/gateway/streams/test_registry.py"
_ROUTER = "tests/unit/gateway/transports/http/test_router.py"
_RESPONSES = "tests/unit/gateway/transports/http/test_responses.py"
_MOCK = "tests/integration/loadtest/mock/test_app.py"
_MOCK_TIMING = "tests/integration/loadtest/mock/test_timing.py"
_RUN = "tests/integration/loadtest/test_run.py"
_REQUESTS = "tests/integration/loadtest/client/test_request_runner.py"
_LOAD_WORKER = "tests/integration/loadtest/generator/test_load_worker.py"

TESTED_IN = {
    "gateway/demo/corpus.py": _DEMO,
    "gateway/demo/encoding.py": _DEMO,
    "gateway/demo/phrasing.py": _DEMO,
    "gateway/demo/train.py": _DEMO,
    "gateway/engine/vllm/core_client/factory.py": "tests/faults/test_engine_death.py",
    "gateway/engine/vllm/engine.py": "tests/e2e/test_equality.py",
    "gateway/engine/vllm/grammars/stub_modules.py": (
        "tests/integration/gateway/engine/vllm/grammars/test_fork_server.py"
    ),
    "gateway/engine/vllm/output/eligibility.py": "tests/integration/gateway/engine/vllm/output/test_fast_path.py",
    "gateway/engine/vllm/request_runner.py": "tests/e2e/test_equality.py",
    "gateway/engine/vllm/synthetic/executor.py": "tests/e2e/test_synthetic.py",
    "gateway/preflight.py": "tests/integration/gateway/transports/common/test_tls.py",
    "gateway/settings_errors.py": "tests/unit/gateway/test_settings.py",
    "gateway/settings_sections.py": "tests/unit/gateway/test_settings.py",
    "gateway/transports/http/engine_app.py": "tests/unit/gateway/transports/http/test_semantics.py",
    "gateway/transports/http/management.py": _ROUTER,
    "gateway/transports/http/paths.py": "tests/unit/gateway/transports/http/test_semantics.py",
    "gateway/transports/http/uvicorn_server.py": "tests/unit/gateway/test_server.py",
    "loadtest/analysis/comparison.py": "tests/unit/loadtest/analysis/test_compare.py",
    "loadtest/analysis/sweep_result.py": "tests/unit/loadtest/analysis/test_sweep.py",
    "loadtest/bench/accuracy.py": "tests/integration/loadtest/test_load_accuracy.py",
    "loadtest/client/connection.py": _REQUESTS,
    "loadtest/client/pool.py": _REQUESTS,
    "loadtest/client/tls.py": _REQUESTS,
    "loadtest/client/token_check.py": "tests/unit/loadtest/client/test_response.py",
    "loadtest/generator/health.py": _RUN,
    "loadtest/generator/precise_timer.py": _LOAD_WORKER,
    "loadtest/generator/preflight.py": _RUN,
    "loadtest/measure/result.py": "tests/unit/loadtest/analysis/test_verdict.py",
    "loadtest/mock/child.py": _MOCK,
    "loadtest/mock/connection.py": _MOCK,
    "loadtest/mock/engine.py": _MOCK_TIMING,
    "loadtest/mock/ground_truth.py": _MOCK_TIMING,
    "loadtest/mock/json_response.py": _MOCK,
    "loadtest/mock/metrics.py": _MOCK,
    "loadtest/mock/openai_chunks.py": _MOCK,
    "loadtest/mock/request_body.py": _MOCK,
    "loadtest/mock/script.py": "tests/integration/loadtest/mock/test_faults.py",
    "loadtest/mock/server.py": _MOCK,
    "loadtest/mock/slots.py": _MOCK_TIMING,
    "loadtest/mock/stream.py": _MOCK_TIMING,
    "loadtest/mock/timer.py": _MOCK_TIMING,
    "loadtest/report/markdown.py": "tests/unit/loadtest/report/test_page.py",
    "loadtest/report/strip.py": "tests/unit/loadtest/analysis/test_compare.py",
    "loadtest/report/tables.py": "tests/unit/loadtest/report/test_page.py",
    "loadtest/runner/finish.py": _RUN,
    "loadtest/runner/locust_users.py": _RUN,
    "loadtest/runner/run.py": _RUN,
    "loadtest/runner/session.py": _RUN,
    "loadtest/scenario/behaviours.py": "tests/unit/loadtest/scenario/test_workload.py",
    "loadtest/scenario/model.py": "tests/unit/loadtest/scenario/test_loader.py",
    "loadtest/scenario/prompt_text.py": "tests/unit/loadtest/scenario/test_workload.py",
}

WITHOUT_TEST = {
    "gateway/demo/tokenizer.py": "trains the demo model's tokenizer by hand (make demo-model)",
    "gateway/memory.py": "one call of glibc, whose effect is measured in tests/faults/test_readers.py",
    "loadtest/bench/": "measures by hand (make bench); its results are looked at, not asserted",
    "loadtest/local_server.py": "starts a server and a load test by hand (make load)",
    "loadtest/locustfile.py": "an example for users of Locust",
    "loadtest/mock/__main__.py": "the command of the mock, which all of its tests start",
    "loadtest/runner/webui.py": "Locust's page, looked at by hand",
}


@cache
def modules() -> list[str]:
    """Modules in which a function has a body."""
    found = [path for package in ("gateway", "loadtest") for path in (ROOT / package).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py" and _has_logic(path))


def _has_logic(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        not isinstance(one, ast.Pass | ast.Raise) and not (isinstance(one, ast.Expr) and _is_constant(one.value))
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for one in function.body
    )


def _is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant)


def find_test_file(module: str) -> Path | None:
    """The test file of a module's name."""
    path = Path(module)
    name = f"test_{path.stem.strip('_')}.py"
    places = [ROOT / "tests" / level / path.parent / name for level in LEVELS]
    return next((place for place in places if place.exists()), None)


def exception(module: str) -> str | None:
    """The entry of a module or of its folder."""
    keys = [
        key for key in (*TESTED_IN, *WITHOUT_TEST) if module == key or (key.endswith("/") and module.startswith(key))
    ]
    return max(keys, key=len, default=None)


@pytest.mark.parametrize("module", modules())
def test_every_module_with_logic_has_a_test_file_or_is_listed(module: str) -> None:
    assert find_test_file(module) is not None or exception(module) is not None, f"{module}: no test_{Path(module).name}"


@pytest.mark.parametrize("key", [*TESTED_IN, *WITHOUT_TEST])
def test_every_exception_names_a_module_and_a_test_that_exist(key: str) -> None:
    assert any(exception(module) == key for module in modules()), f"{key}: there is no such module with logic"
    assert key not in TESTED_IN or (ROOT / TESTED_IN[key]).is_file(), f"{key}: {TESTED_IN[key]} does not exist"
