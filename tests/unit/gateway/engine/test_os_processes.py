from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.engine.os_processes import kill_below, usage


def _write(proc: Path, pid: int, state: str, ticks: int, children: list[int] | None, parent: int = 0) -> None:
    threads = proc / str(pid) / "task" / str(pid)
    threads.mkdir(parents=True)
    fields = [state, str(parent), *["1"] * 9, str(ticks), "1", *["0"] * 30]
    (proc / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}")
    if children is not None:
        (threads / "children").write_text(" ".join(map(str, children)))


def test_a_tree_of_processes_is_added_up(tmp_path: Path) -> None:
    _write(tmp_path, 1, "S", 99, [2, 3])
    _write(tmp_path, 2, "R", 199, [4])
    _write(tmp_path, 4, "S", 0, [])
    found = usage([1, 77], tmp_path)

    assert found is not None
    assert found.cpu_s == pytest.approx((100 + 200 + 1) / os.sysconf("SC_CLK_TCK"))
    assert not found.is_stopped


def test_a_kernel_that_does_not_list_children_is_asked_for_parents(tmp_path: Path) -> None:
    _write(tmp_path, 1, "S", 99, None)
    _write(tmp_path, 2, "R", 199, None, parent=1)
    _write(tmp_path, 3, "R", 999, None, parent=7)
    found = usage([1], tmp_path)

    assert found is not None
    assert found.cpu_s == pytest.approx((100 + 200) / os.sysconf("SC_CLK_TCK"))


def test_one_that_is_stopped_shows(tmp_path: Path) -> None:
    _write(tmp_path, 1, "S", 0, [2])
    _write(tmp_path, 2, "T", 0, [])
    found = usage([1], tmp_path)

    assert found is not None
    assert found.is_stopped
    assert usage([77], tmp_path) is None
    assert usage([], tmp_path) is None


def test_real_processes() -> None:
    own = usage([os.getpid()])
    assert own is not None
    assert own.cpu_s > 0
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        found = usage([child.pid])
        assert found is not None
        assert found.is_stopped
    finally:
        child.kill()
        child.communicate()


def test_children_of_children_go_too() -> None:
    """Those of an engine that is starting import for half a minute before they notice that they are alone."""
    program = "import subprocess, sys; one = subprocess.Popen(['sleep', '60']); print(one.pid, flush=True); one.wait()"
    middle = subprocess.Popen(["sh", "-c", f'{sys.executable} -c "{program}"; true'], stdout=-1, text=True)
    try:
        assert middle.stdout is not None
        grandchild = int(middle.stdout.readline())
        kill_below(middle.pid)
        middle.wait(10)

        for _ in range(100):
            if not Path(f"/proc/{grandchild}").exists() or "Z" in Path(f"/proc/{grandchild}/stat").read_text():
                break
            time.sleep(0.05)
        else:
            raise AssertionError("it lives")
    finally:
        middle.kill()
        middle.communicate()
