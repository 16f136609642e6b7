"""Which package of the load generator may import which; `loadtest/__init__.py` states the rules in words."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import loadtest
from tests.support.imports import imports_of

ROOT = Path(loadtest.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# package or module at the top -> what it may import besides itself
ARROWS: dict[str, set[str]] = {
    "formatting": set(),
    "timerfd": set(),
    "measure": set(),
    "scenario": {"measure"},
    "client": {"measure", "scenario"},
    "generator": {"measure", "scenario", "client", "timerfd"},
    "server_metrics": {"measure"},
    "report": {"measure", "formatting"},
    "analysis": {"measure", "scenario", "report", "formatting"},
    "runner": {"measure", "scenario", "client", "generator", "server_metrics", "report", "analysis"},
    "mock": {"measure", "scenario", "timerfd"},
    "cli": {"measure", "scenario", "generator", "report", "analysis", "runner"},
    "locustfile": {"scenario", "runner"},
    "local_server": {"cli"},
    "bench": {"measure", "mock", "local_server"},
}
# library -> where it may be imported
HOMES: dict[str, tuple[str, ...]] = {
    "locust": ("runner/", "locustfile.py"),
    "flask": ("runner/webui.py",),
    "gevent": ("client/", "generator/", "runner/"),
    "httptools": ("client/connection.py", "mock/connection.py"),
    "uvloop": ("mock/", "bench/"),
    "asyncio": ("mock/", "bench/"),
    "jinja2": ("report/page.py",),
    "numpy": ("analysis/bootstrap.py",),
    "vllm": ("bench/vllm_command.py",),
}
PURE = (
    "measure.aggregates measure.histogram measure.quantile_ci measure.record measure.result "
    "scenario.arrivals scenario.behaviours scenario.distributions scenario.loader scenario.model "
    "scenario.prompt_text scenario.slo scenario.traces scenario.workload "
    "client.response client.sse client.token_check"
)
WITHOUT_LOCUST = (
    "cli client.connection client.pool client.request_runner client.tls generator.health generator.load_worker "
    "generator.precise_timer generator.preflight generator.request_log runner.run_plan runner.summarise"
)


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports(file: Path) -> frozenset[str]:
    # `from loadtest import report` and `from gateway import demo` import a module of the package.
    return imports_of(file, lambda name: name.count(".") == 1 and name.split(".")[0] in {"loadtest", "gateway"})


@pytest.mark.parametrize("file", FILES, ids=label)
def test_a_package_imports_only_what_its_arrows_allow(file: Path) -> None:
    package = package_of(file)
    if package == "__init__":
        return
    ours = {name.split(".")[1] for name in imports(file) if name.startswith("loadtest.")}

    assert not ours - ARROWS[package] - {package}


def test_no_arrows_form_a_circle() -> None:
    assert set(TopologicalSorter(ARROWS).static_order()) == set(ARROWS)


@pytest.mark.parametrize("file", FILES, ids=label)
def test_the_gateway_is_imported_for_its_deterministic_tokens_alone(file: Path) -> None:
    """So that the load test's image needs no vLLM. Benchmarks start front ends of every kind."""
    ours = {name for name in imports(file) if name.partition(".")[0] == "gateway"}

    assert package_of(file) == "bench" or ours <= {"gateway.engine", "gateway.engine.deterministic_tokens"}


@pytest.mark.parametrize("file", FILES, ids=label)
def test_a_library_is_imported_where_it_belongs(file: Path) -> None:
    wrong = {
        name
        for name in imports(file)
        for library, homes in HOMES.items()
        if name.partition(".")[0] == library and not label(file).startswith(homes)
    }

    assert not wrong


@pytest.mark.parametrize("file", FILES, ids=label)
def test_every_module_has_a_docstring(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def test_the_map_lists_every_module() -> None:
    listed = set(re.findall(r"`(\w+)`", loadtest.__doc__ or ""))
    apart = {"mock", "report", "bench"}
    modules = {file.stem for file in FILES if package_of(file) not in apart} | apart

    assert modules - {"__init__"} <= listed


@pytest.mark.parametrize("package", ["mock", "report"])
def test_a_packages_page_lists_its_modules(package: str) -> None:
    page = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}

    assert modules <= set(re.findall(r"`(\w+)`", page))


def loaded_with(modules: str) -> set[str]:
    """The libraries that an import of these modules loads, in a process of its own."""
    names = ", ".join(f"loadtest.{name}" for name in modules.split())
    code = f"import sys, {names}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env=env)
    return set(done.stdout.split())


def test_pure_modules_import_neither_sockets_nor_locust() -> None:
    assert not loaded_with(PURE) & {"gevent", "locust", "httptools", "asyncio"}


def test_importing_locust_patches_the_process_so_only_its_side_does() -> None:
    found = loaded_with(WITHOUT_LOCUST)

    assert "gevent" in found
    assert "locust" not in found
