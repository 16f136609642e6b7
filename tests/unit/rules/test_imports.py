"""Who may import whom, enforced by walking the syntax trees; `gateway/__init__.py` states the rules in words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import gateway
from tests.support.imports import imports_of

ROOT = Path(gateway.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Demo's model is made by a script of its own with libraries that the server itself never imports.
OURS = [file for file in FILES if "demo" not in file.parts]

NOUNS = {"domain", "errors", "clock", "bounded_text", "hints", "asgi"}
# package -> what it may import besides the nouns and itself
ARROWS: dict[str, set[str]] = {
    "domain": set(),
    "errors": set(),
    "bounded_text": set(),
    "asgi": set(),
    "hints": set(),
    "offload": set(),
    "clock": set(),
    "logs": set(),
    "loop_lag": set(),
    "metrics": set(),
    "settings": {"settings_sections", "settings_errors"},
    "settings_sections": set(),
    "settings_errors": set(),
    "shutdown": {"engine.os_processes", "offload"},
    "memory": set(),
    "protocols": set(),
    "admission": set(),
    "streamlog": set(),
    "streams": {"admission", "streamlog.base", "protocols.base", "engine.base", "engine.bounded_json", "offload"},
    "engine": {"offload"},
    "engine.vllm": {
        "engine.base",
        "engine.bounded_json",
        "engine.deterministic_tokens",
        "engine.os_processes",
        "engine.poison_detector",
        "engine.shared",
        "engine.watchdog",
        "offload",
    },
    "transports.common": {"streams", "protocols", "streamlog.base", "logs"},
    "transports.http": {"transports.common", "streams", "protocols", "streamlog.base", "engine.base", "memory"},
    "server": {"app", "settings", "settings_sections", "logs", "transports.common", "transports.http", "shutdown"},
    "multiprocess": set(),
    "process_context": {"admission.gate", "engine.base", "engine.shared"},
    "engine_plan": {"settings", "demo", "engine.bounded_json", "engine.shared", "engine.vllm.startup"},
    # Everything but `multiprocess`, `server` and the command line, which are above it.
    "app": {
        "admission",
        "engine",
        "loop_lag",
        "metrics",
        "process_context",
        "protocols",
        "settings",
        "streamlog",
        "streams",
        "transports",
    },
    # The two programs share only messages and the channel; the parent starts the worker's.
    "multiprocess.parent": {
        "multiprocess.channel",
        "multiprocess.messages",
        "multiprocess.worker.process",
        "admission.gate",
        "app",
        "engine_plan",
        "server",
        "settings",
        "logs",
        "shutdown",
        "engine.base",
        "engine.shared",
        "engine.supervisor",
        "preflight",
    },
    "multiprocess.worker": {
        "multiprocess.channel",
        "multiprocess.messages",
        "multiprocess.stream_ids",
        "admission.gate",
        "engine.base",
        "engine.shared",
        "app",
        "engine_plan",
        "server",
        "transports.http.error_response",
        "settings",
        "logs",
        "shutdown",
    },
    "cli": {
        "app",
        "engine_plan",
        "transports.common.api_keys",
        "preflight",
        "settings",
        "settings_errors",
        "server",
        "logs",
        "multiprocess.parent.process",
        "multiprocess.worker.process",
        "engine.vllm.startup.arguments",
        "engine.vllm.startup.headless",
    },
    "preflight": {
        "engine_plan",
        "server",
        "settings",
        "transports.common.tls",
        "transports.common.api_keys",
        "transports.http.custom_middleware",
        "engine.vllm.startup.checks",
        "engine.vllm.startup.plan",
    },
    "__main__": {"cli"},
    "client": set(),
}
# The same inside `engine/vllm`, where a module beside the packages counts as a package. Each may import only what
# stands above it, so there is no circle.
VLLM_ARROWS: dict[str, set[str]] = {
    "compat": set(),
    "exceptions": set(),
    "daemon_threads": set(),
    "bounded_validation": set(),
    "synthetic": set(),
    "media_connector": set(),
    "error_mapping": {"compat", "exceptions", "bounded_validation"},
    "prompt_offload": {"daemon_threads"},
    "grammars": {"error_mapping"},
    "engine_process": {"grammars"},
    "core_client": {"compat", "exceptions", "daemon_threads", "engine_process"},
    "output": {"compat", "error_mapping", "core_client"},
    "http_app": {"compat", "exceptions", "bounded_validation", "error_mapping", "media_connector", "output"},
    "request_models": {"bounded_validation", "error_mapping", "http_app"},
    "request_runner": {"compat", "error_mapping", "media_connector", "output", "http_app", "request_models"},
    "engine": {
        "error_mapping",
        "prompt_offload",
        "grammars",
        "core_client",
        "output",
        "http_app",
        "request_models",
        "request_runner",
    },
    "startup": {
        "compat",
        "daemon_threads",
        "synthetic",
        "media_connector",
        "grammars",
        "engine_process",
        "core_client",
        "engine",
    },
}
PACKAGES_OF_A_PACKAGE = {"transports", "multiprocess"}
PROCESSES = {"multiprocess.parent.process", "multiprocess.worker.process"}
EXEMPT = {"demo", "__init__", "transports"}

# library -> where it may be imported
HOMES: dict[str, tuple[str, ...]] = {
    "vllm": ("engine/vllm/",),
    "torch": ("engine/vllm/", "demo/"),
    "transformers": ("engine/vllm/", "demo/"),
    "fastapi": ("transports/http/",),
    "starlette": ("transports/http/",),
    "uvicorn": tuple(f"transports/http/{name}.py" for name in ("uvicorn_server", "request_limits", "lingering_close")),
    "prometheus_client": ("metrics.py",),
    "httpx": ("client/",),
    "pydantic_settings": ("settings.py",),
    "yaml": ("settings.py", "demo/"),
}


def name_of(file: Path) -> str:
    """The module's name below `gateway`."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def package_of(module: str) -> str:
    """`engine.vllm.client` -> `engine.vllm`, `streams.registry` -> `streams`."""
    parts = module.split(".")
    if module.startswith("engine.vllm"):
        return "engine.vllm"
    is_nested = parts[0] in PACKAGES_OF_A_PACKAGE and (ROOT / parts[0] / "".join(parts[1:2])).is_dir()
    return ".".join(parts[: 2 if is_nested and len(parts) > 1 else 1])


MODULES = {name_of(file) for file in FILES}


@cache
def imports(file: Path) -> frozenset[str]:
    return imports_of(file, lambda name: name.removeprefix("gateway.") in MODULES)


def ours(file: Path) -> set[str]:
    """Which of our modules a file imports, below `gateway`."""
    return {name.removeprefix("gateway.") for name in imports(file) if name.startswith("gateway.")}


def is_at(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", OURS, ids=label)
def test_a_package_imports_only_what_its_arrows_allow(file: Path) -> None:
    package = package_of(name_of(file))
    if package in EXEMPT:
        return
    assert package in ARROWS, f"the package {package} has no arrows yet: add it to the design first"
    allowed = NOUNS | ARROWS[package]
    wrong = {
        module
        for module in ours(file)
        if package_of(module) != package and not any(is_at(module, place) for place in allowed)
    }

    assert not wrong, f"{label(file)} may not import {sorted(wrong)}"


def test_the_arrows_inside_vllms_folder_make_no_circle() -> None:
    above: set[str] = set()
    for package, allowed in VLLM_ARROWS.items():
        assert allowed <= above, f"{package} may import {sorted(allowed - above)}, which stand below it"
        above.add(package)


@pytest.mark.parametrize("file", [file for file in OURS if name_of(file).startswith("engine.vllm.")], ids=label)
def test_vllms_folder_keeps_its_own_arrows(file: Path) -> None:
    package = name_of(file).split(".")[2]
    assert package in VLLM_ARROWS, f"{package} has no arrows yet: add it to the design first"
    used = {
        parts[2] for module in ours(file) if len(parts := module.split(".")) > 2 and parts[:2] == ["engine", "vllm"]
    }
    wrong = used - VLLM_ARROWS[package] - {package}

    assert not wrong, f"{label(file)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("file", OURS, ids=label)
def test_only_the_wiring_uses_the_settings(file: Path) -> None:
    """Packages get plain values, never Settings."""
    if "settings" in ours(file):
        assert name_of(file) in {"app", "engine_plan", "preflight", "server", "cli", *PROCESSES}


@pytest.mark.parametrize("file", OURS, ids=label)
def test_a_library_has_one_home(file: Path) -> None:
    wrong = {
        name
        for name in imports(file)
        for library, homes in HOMES.items()
        if is_at(name, library) and not label(file).startswith(homes)
    }

    assert not wrong, f"{label(file)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("file", OURS, ids=label)
def test_pure_modules_do_not_import_asyncio(file: Path) -> None:
    pure = label(file).startswith("protocols/") or name_of(file) in {"streams.lifecycle", "admission.slots", *NOUNS}

    assert not (pure and "asyncio" in imports(file))


@pytest.mark.parametrize("file", OURS, ids=label)
def test_only_the_settings_and_vllms_folder_read_the_environment(file: Path) -> None:
    """vLLM is set up through variables, so its folder has to write some."""
    if name_of(file) == "settings" or package_of(name_of(file)) == "engine.vllm":
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert not names & {"environ", "getenv"}


@pytest.mark.parametrize("file", OURS, ids=label)
def test_durations_come_from_the_clock(file: Path) -> None:
    """A file that reads the machine's clock cannot be tested in virtual time."""
    if name_of(file) in {"clock", "logs"} or package_of(name_of(file)) == "engine.vllm":
        return

    assert not imports(file) & {"time", "datetime"}


@pytest.mark.parametrize("file", FILES, ids=label)
def test_no_file_shadows_the_standard_library_at_the_top(file: Path) -> None:
    assert file.relative_to(ROOT).parts[0].removesuffix(".py") not in set(sys.stdlib_module_names) - {"__main__"}


@pytest.mark.parametrize("file", OURS, ids=label)
def test_every_module_has_a_docstring(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def test_vllm_is_imported_only_when_an_engine_is_built() -> None:
    """It takes ten seconds; `sluice --help` and a settings error must not wait for that. Seen from a fresh process,
    because a library could be pulled in by another one."""
    modules = [
        f"gateway.{name}"
        for name in sorted(MODULES)
        if package_of(name) not in {"engine.vllm", "demo", "__init__", "__main__"}
    ]
    script = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in ('vllm', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_importing_has_no_side_effects_on_logging_or_signals() -> None:
    script = (
        "import logging, signal, importlib\n"
        "before = (logging.getLogger().handlers[:], logging.getLogger().level, signal.getsignal(signal.SIGTERM))\n"
        "for name in ('app', 'server', 'cli'): importlib.import_module('gateway.' + name)\n"
        "after = (logging.getLogger().handlers[:], logging.getLogger().level, signal.getsignal(signal.SIGTERM))\n"
        "assert before == after, (before, after)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "package",
    [
        "streams",
        "streamlog",
        "protocols",
        "transports/common",
        "transports/http",
        "admission",
        "multiprocess",
        "multiprocess/parent",
        "multiprocess/worker",
    ],
)
def test_a_packages_docstring_lists_its_modules(package: str) -> None:
    page = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__"}

    assert modules <= set(re.findall(r"(?:^- |; )`(\w+)`:", page, re.M))
