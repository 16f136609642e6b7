"""CPU time and state of other processes, from /proc. Elsewhere than on Linux nothing is known."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STOPPED = frozenset("Tt")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds that processes and their descendants have used so far, and whether any of them is stopped by a signal
    or a debugger."""

    cpu_s: float
    is_stopped: bool


def usage(pids: Iterable[int], proc: Path = _PROC) -> Usage | None:
    """The usage of `pids` and their descendants; None if it is not known."""
    ticks = 0
    states: set[str] = set()
    roots = set(pids)
    for pid in roots | _below(roots, proc):
        with suppress(OSError, IndexError, ValueError):
            # The name in the second field may hold blanks and brackets.
            state, *fields = (proc / str(pid) / "stat").read_text().rsplit(") ", 1)[1].split()
            ticks += int(fields[10]) + int(fields[11])
            states.add(state)
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), bool(states & _STOPPED)) if states else None


def kill_below(pid: int) -> None:
    """Kill the descendants of `pid`, also those that have only just been started: a worker of a starting engine takes
    half a minute to notice that its parent is gone."""
    found: set[int] = set()
    while new := _below([pid]) - found:
        # A stopped process starts no other.
        _signal(new, signal.SIGSTOP)
        found |= new
    _signal(found, signal.SIGKILL)


def _below(pids: Iterable[int], proc: Path = _PROC) -> set[int]:
    """The descendants of `pids`."""
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        children = [child for child in _children(proc / str(waiting.pop())) if child not in found]
        found.update(children)
        waiting += children
    return found


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


def _children(folder: Path) -> list[int]:
    """The processes that any thread of the process has started."""
    found: list[int] = []
    lists = list(folder.glob("task/*/children"))
    if not lists:
        # Some kernels are built without them.
        return _whose_parent_is(folder.name, folder.parent)
    for one in lists:
        with suppress(OSError, ValueError):
            found += [int(pid) for pid in one.read_text().split()]
    return found


def _whose_parent_is(pid: str, proc: Path) -> list[int]:
    found = []
    for stat in proc.glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            if stat.read_text().rsplit(") ", 1)[1].split()[1] == pid:
                found.append(int(stat.parent.name))
    return found
