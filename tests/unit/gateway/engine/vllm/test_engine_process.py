"""The plug-in of the engine process, in processes of its own: it changes the one in which it runs."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import gateway
from gateway.engine.vllm import engine_process


def test_the_entry_point_of_vllms_plugins_is_this_one() -> None:
    """vLLM only logs a plug-in that it cannot load."""
    project = tomllib.loads((Path(gateway.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["sluice"].partition(":")

    assert getattr(importlib.import_module(module), function) is engine_process.install_plugin


def test_the_requests_of_a_dead_client_are_aborted_and_no_others() -> None:
    aborted: list[str] = []
    requests = {f"r{number}": SimpleNamespace(client_index=number % 3) for number in range(7)}
    engine = SimpleNamespace(scheduler=SimpleNamespace(requests=requests), abort_requests=aborted.extend)

    assert engine_process._abort_client(engine, 1) == 2
    assert aborted == ["r1", "r4"]


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> type:
    class Coordinator:
        @staticmethod
        def run_coordinator(*words: str) -> None:
            ran.append(words)

    ran: list[tuple[str, ...]] = []
    Coordinator.ran = ran  # type: ignore[attr-defined]
    monkeypatch.setattr(engine_process, "_original_run_coordinator", None)
    return Coordinator


def test_the_coordinators_function_is_replaced_once_and_runs(coordinator: type) -> None:
    engine_process.replace_coordinator(coordinator)
    engine_process.replace_coordinator(coordinator)
    coordinator.run_coordinator("a", "b")  # type: ignore[attr-defined]

    assert coordinator.run_coordinator is engine_process.run_coordinator  # type: ignore[attr-defined]
    assert coordinator.ran == [("a", "b")]  # type: ignore[attr-defined]


_PARENT = """
import multiprocessing, os, time

def child(connection):
    from gateway.engine.vllm import engine_process
    engine_process.install_plugin()
    connection.send((os.getpid(), os.getpgrp()))
    time.sleep(60)

if __name__ == "__main__":
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    spawned.Process(target=child, args=(theirs,), daemon=True).start()
    print(*ours.recv(), flush=True)
    time.sleep(60)
"""


def start(tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[str], int, int]:
    """The parent, its child and the child's process group."""
    script = tmp_path / "parent.py"
    script.write_text(_PARENT, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    pid, group = map(int, parent.stdout.readline().split())
    return parent, pid, group


def test_an_engine_process_leaves_the_group_and_ends_with_a_killed_parent(tmp_path: Path) -> None:
    parent, pid, group = start(tmp_path, **{engine_process.VARIABLE: "1"})
    try:
        assert group == pid
    finally:
        parent.kill()
        parent.communicate()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii"):
            # It waits for the process that reaps orphans.
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the orphan lives")


def test_a_process_of_another_program_is_left_alone(tmp_path: Path) -> None:
    parent, pid, group = start(tmp_path)
    try:
        assert group != pid
    finally:
        os.kill(pid, signal.SIGKILL)
        parent.kill()
        parent.communicate()
