"""The checker process: loads the grammar libraries once, then forks a child for every grammar.

A fork costs milliseconds and shares the loaded libraries and the vocabulary, so each grammar has a process that can be
killed and that has limits of its own on time and memory. This process has one thread and compiles nothing itself, so
it always answers, and it ends when the gateway's end of its socket closes, whatever has become of the gateway.

Messages are JSON documents, each behind its length in four bytes. To this process: first the configuration, then
`{"id", "constraint"}`, `{"cancel"}` and `{"vocabulary"}`; from it: `{"ready"}`, then one `{"id", "outcome", ...}` for
each grammar that was not cancelled.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.clock import SystemClock

_CLOCK = SystemClock()
_HEAD = struct.Struct("!I")
# A grammar that is not done by then steps back behind younger ones, which are probably harmless.
_YOUNG_S = 0.3
_NICE_YOUNG = 5
_NICE_OLD = 19
_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    """One grammar that is being compiled."""

    pid: int
    pipe: int
    began_s: float
    old: bool = False
    said: bytearray = field(default_factory=bytearray)


class Forker:
    """The loop of this process."""

    def __init__(self, link: socket.socket, config: dict[str, Any], check: Any) -> None:
        """`config` holds `timeout_s` (of CPU), `wall_s` (on the clock) and `max_memory_bytes` of one grammar."""
        self._link = link
        self._cpu_s = float(config["timeout_s"])
        self._wall_s = float(config["wall_s"])
        self._memory_bytes = int(config["max_memory_bytes"])
        self._backends = check
        self._children: dict[int, _Child] = {}
        self._arrived = bytearray()
        self._set_death_signal = _death_signal()

    def run(self) -> None:
        """Serve until the gateway is gone."""
        send(self._link, {"ready": True})
        while True:
            pipes = {child.pipe: name for name, child in self._children.items()}
            link = self._link.fileno()
            readable, _, _ = select.select([link, *pipes], [], [], self._pause_s())
            for ready in readable:
                if ready != link:
                    self._hear(pipes[ready])
            if link in readable and not self._take():
                return
            self._look()

    def end(self) -> None:
        """Kill what still runs."""
        for name in list(self._children):
            self._kill(name)

    def _pause_s(self) -> float | None:
        if not self._children:
            return None
        now = _CLOCK.now()
        return max(
            0.0,
            min(child.began_s + (self._wall_s if child.old else _YOUNG_S) - now for child in self._children.values()),
        )

    def _take(self) -> bool:
        """Read what the gateway has sent; False once it is gone."""
        try:
            piece = self._link.recv(2**20)
        except ConnectionError:
            return False
        self._arrived += piece
        while (document := _cut(self._arrived)) is not None:
            if "cancel" in document:
                if document["cancel"] in self._children:
                    self._kill(document["cancel"])
            elif "vocabulary" in document:
                self._backends.take_vocabulary(document["vocabulary"])
            else:
                self._fork(document["id"], document["constraint"])
        return bool(piece)

    def _fork(self, name: int, constraint: dict[str, Any]) -> None:
        mine, theirs = os.pipe()
        pid = os.fork()
        if pid:
            os.close(theirs)
            self._children[name] = _Child(pid, mine, _CLOCK.now())
            return
        try:
            self._link.close()
            os.close(mine)
            self._set_death_signal()
            os.nice(_NICE_YOUNG)
            seconds = max(1, -int(-self._cpu_s // 1))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            memory_bytes = _mapped_bytes() + self._memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # What the libraries print is about the client's grammar, and nobody's business in the log.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with open(theirs, "wb") as answer:
                answer.write(json.dumps(self._answer(constraint)).encode())
        finally:
            os._exit(0)

    def _answer(self, constraint: dict[str, Any]) -> dict[str, Any]:
        # By name: the class is defined where vLLM's files may be imported from, and that is after this module.
        try:
            return {"outcome": "good", "backend": self._backends.check(constraint)}
        except Exception as error:
            kind = type(error).__name__
            if kind == "NeedsVocabulary":
                return {"outcome": "vocabulary"}
            if kind == "TooMuchMemory":
                return {"outcome": "memory"}
            return {"outcome": "bad", "message": str(error) if kind == "Refused" else "It cannot be compiled."}

    def _hear(self, name: int) -> None:
        """A child has written, or has ended."""
        child = self._children.get(name)
        if child is None:
            return
        piece = os.read(child.pipe, 2**16)
        if piece:
            child.said += piece
            return
        del self._children[name]
        os.close(child.pipe)
        _, status, used = os.wait4(child.pid, 0)
        cpu_s = used.ru_utime + used.ru_stime
        if child.said:
            document = json.loads(child.said)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            # Killed by its limit on CPU time, or by us because of the clock: then on this machine, today.
            starved, slow = cpu_s < _YOUNG_S / 2, cpu_s >= self._cpu_s
            document = {"outcome": "starved" if starved else "slow" if slow else "late"}
        else:
            # The libraries abort where they cannot allocate.
            document = {"outcome": "memory"}
        send(self._link, {"id": name, "cpu_s": round(cpu_s, 4), **document})

    def _kill(self, name: int) -> None:
        child = self._children.pop(name)
        os.kill(child.pid, signal.SIGKILL)
        os.close(child.pipe)
        os.waitpid(child.pid, 0)

    def _look(self) -> None:
        """Have old ones step back, and end those whose time is up."""
        now = _CLOCK.now()
        for child in self._children.values():
            age_s = now - child.began_s
            if age_s >= self._wall_s:
                os.kill(child.pid, signal.SIGKILL)
            elif age_s >= _YOUNG_S and not child.old:
                child.old = True
                os.setpriority(os.PRIO_PROCESS, child.pid, _NICE_OLD)


def _mapped_bytes() -> int:
    """What the limit on memory counts of this process already."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


def _death_signal() -> Callable[[], None]:
    """What has the calling process killed when its parent ends; nothing where the system has no such thing."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return lambda: None
    return lambda: prctl(_PDEATHSIG, signal.SIGKILL)


def _cut(arrived: bytearray) -> Any:
    """Take the first whole document out of what has arrived; None if there is none yet."""
    if len(arrived) < _HEAD.size:
        return None
    (length,) = _HEAD.unpack_from(arrived)
    end = _HEAD.size + length
    if len(arrived) < end:
        return None
    document = json.loads(bytes(arrived[_HEAD.size : end]))
    del arrived[:end]
    return document


def pack(document: Any) -> bytes:
    """A document as it is sent."""
    body = json.dumps(document).encode()
    return _HEAD.pack(len(body)) + body


def send(link: socket.socket, document: Any) -> None:
    """Send a document. The gateway reads all the time; if it is gone, the loop will notice."""
    try:
        link.sendall(pack(document))
    except OSError:
        return


def main() -> None:
    """Serve on the socket whose number is the only argument."""
    link = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arrived = bytearray()
    while (config := _cut(arrived)) is None:
        piece = link.recv(2**20)
        if not piece:
            return
        arrived += piece
    forker = Forker(link, config, _load(config))
    try:
        forker.run()
    finally:
        forker.end()


def _load(config: dict[str, Any]) -> Any:
    if config.get("whole") is not None:
        # The gateway's own configuration, from its own memory.
        import base64
        import pickle

        from gateway.engine.vllm.grammars.backends import WholeBackends

        return WholeBackends(pickle.loads(base64.b64decode(config["whole"])))  # noqa: S301
    from gateway.engine.vllm.grammars import stub_modules

    stub_modules.install()
    from gateway.engine.vllm.grammars.backends import Backends

    for name in ("backend_xgrammar", "backend_guidance", "backend_outlines", "request"):
        stub_modules.backend(name)
    # vLLM's files import these when they use them, which is in the children.
    for name in ("xgrammar", "llguidance", "outlines_core"):
        importlib.import_module(name)
    return Backends(config["settings"], config.get("tokenizer"))


if __name__ == "__main__":
    main()


__all__ = ["Forker", "main", "pack", "send"]
