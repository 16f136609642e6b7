"""The program of the checker process: it loads the grammar libraries once, then forks a child for every grammar.

A fork costs milliseconds and shares the loaded libraries and the vocabulary, so each grammar has a process that can be
killed and that has limits of its own on time and memory. This process has one thread and compiles nothing itself, so it
is always responsive. It ends when the gateway's end of its socket closes, also after a crash of the gateway.

Messages are JSON documents, one in each line. The gateway sends the configuration first, then
`{"id", "constraint"}`, `{"cancel"}` and `{"vocabulary"}`. This process sends `{"ready"}`, then one `{"id", "outcome",
...}` for each grammar that was not cancelled.
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
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.clock import SystemClock

_CLOCK = SystemClock()
# A check that takes longer gets a lower priority than younger ones, which are probably harmless.
_DEMOTE_AFTER_S = 0.3
_NICE_INITIAL = 5
_NICE_DEMOTED = 19
_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    """A process that checks one grammar."""

    pid: int
    pipe: int
    started_s: float
    is_demoted: bool = False
    output: bytearray = field(default_factory=bytearray)


class ForkServer:
    """The event loop of this process."""

    def __init__(self, gateway: socket.socket, config: dict[str, Any], backends: Any) -> None:
        """`config` has `timeout_s` (of CPU), `wall_s` (on the clock) and `max_memory_bytes` of one grammar."""
        self._gateway = gateway
        self._cpu_s = float(config["timeout_s"])
        self._wall_s = float(config["wall_s"])
        self._memory_bytes = int(config["max_memory_bytes"])
        self._backends = backends
        self._children: dict[int, _Child] = {}
        self._arrived = b""
        self._set_death_signal = _death_signal()

    def run(self) -> None:
        """Serve until the gateway's end of the socket closes."""
        send(self._gateway, {"ready": True})
        while True:
            pipes = {child.pipe: id_ for id_, child in self._children.items()}
            gateway = self._gateway.fileno()
            readable, _, _ = select.select([gateway, *pipes], [], [], self._timeout_s())
            for ready in readable:
                if ready != gateway:
                    self._read_child(pipes[ready])
            if gateway in readable and not self._read_gateway():
                return
            self._enforce_time()

    def kill_all(self) -> None:
        """Kill all children."""
        for id_ in list(self._children):
            self._kill(id_)

    def _timeout_s(self) -> float | None:
        if not self._children:
            return None
        now = _CLOCK.now()
        return max(
            0.0,
            min(
                child.started_s + (self._wall_s if child.is_demoted else _DEMOTE_AFTER_S) - now
                for child in self._children.values()
            ),
        )

    def _read_gateway(self) -> bool:
        """Handle the gateway's documents. Returns False at the end of the socket."""
        try:
            piece = self._gateway.recv(2**20)
        except ConnectionError:
            return False
        *lines, self._arrived = (self._arrived + piece).split(b"\n")
        for document in map(json.loads, lines):
            if "cancel" in document:
                if document["cancel"] in self._children:
                    self._kill(document["cancel"])
            elif "vocabulary" in document:
                self._backends.set_vocabulary(document["vocabulary"])
            else:
                self._fork(document["id"], document["constraint"])
        return bool(piece)

    def _fork(self, id_: int, constraint: dict[str, Any]) -> None:
        mine, theirs = os.pipe()
        pid = os.fork()
        if pid:
            os.close(theirs)
            self._children[id_] = _Child(pid, mine, _CLOCK.now())
            return
        try:
            self._gateway.close()
            os.close(mine)
            self._set_death_signal()
            os.nice(_NICE_INITIAL)
            seconds = max(1, -int(-self._cpu_s // 1))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            memory_bytes = _mapped_bytes() + self._memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # The libraries print the client's grammar, which must not be in the log.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with open(theirs, "wb") as answer:
                answer.write(json.dumps(self._answer(constraint)).encode())
        finally:
            os._exit(0)

    def _answer(self, constraint: dict[str, Any]) -> dict[str, Any]:
        # By name: the module with the exceptions can only be imported after the stub modules, so not here.
        try:
            return {"outcome": "good", "backend": self._backends.check(constraint)}
        except Exception as error:
            kind = type(error).__name__
            if kind == "VocabularyMissing":
                return {"outcome": "vocabulary"}
            if kind == "MemoryLimitExceeded":
                return {"outcome": "memory"}
            return {"outcome": "bad", "message": str(error) if kind == "GrammarRejected" else "It cannot be compiled."}

    def _read_child(self, id_: int) -> None:
        """Read a child's output; at its end, send the outcome."""
        child = self._children.get(id_)
        if child is None:
            return
        piece = os.read(child.pipe, 2**16)
        if piece:
            child.output += piece
            return
        del self._children[id_]
        os.close(child.pipe)
        _, status, used = os.wait4(child.pid, 0)
        cpu_s = used.ru_utime + used.ru_stime
        if child.output:
            document = json.loads(child.output)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            # Killed by its limit on CPU time, or by this process because of the clock, which another day may suffice.
            starved, slow = cpu_s < _DEMOTE_AFTER_S / 2, cpu_s >= self._cpu_s
            document = {"outcome": "starved" if starved else "slow" if slow else "late"}
        else:
            # The libraries abort when an allocation fails.
            document = {"outcome": "memory"}
        send(self._gateway, {"id": id_, **document})

    def _kill(self, id_: int) -> None:
        child = self._children.pop(id_)
        os.kill(child.pid, signal.SIGKILL)
        os.close(child.pipe)
        os.waitpid(child.pid, 0)

    def _enforce_time(self) -> None:
        """Lower the priority of slow children, and kill those whose time is up."""
        now = _CLOCK.now()
        for child in self._children.values():
            age_s = now - child.started_s
            if age_s >= self._wall_s:
                os.kill(child.pid, signal.SIGKILL)
            elif age_s >= _DEMOTE_AFTER_S and not child.is_demoted:
                child.is_demoted = True
                os.setpriority(os.PRIO_PROCESS, child.pid, _NICE_DEMOTED)


def _mapped_bytes() -> int:
    """Address space of this process, which the limit on memory includes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


def _death_signal() -> Callable[[], None]:
    """A function that has the calling process killed when its parent ends; without effect on systems without prctl."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return lambda: None
    return lambda: prctl(_PDEATHSIG, signal.SIGKILL)


def pack(document: Any) -> bytes:
    """A document in the form in which it is sent."""
    return json.dumps(document).encode() + b"\n"


def send(gateway: socket.socket, document: Any) -> None:
    """Send a document. The gateway always reads; if it has ended, `ForkServer.run` ends, too."""
    try:
        gateway.sendall(pack(document))
    except OSError:
        return


def main() -> None:
    """Serve on the socket whose file descriptor is the only argument."""
    gateway = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The gateway sends nothing else before this process is ready.
    line = gateway.makefile("rb").readline()
    if not line.endswith(b"\n"):
        return
    config = json.loads(line)
    server = ForkServer(gateway, config, _load_backends(config))
    try:
        server.run()
    finally:
        server.kill_all()


def _load_backends(config: dict[str, Any]) -> Any:
    if config.get("vllm_config") is not None:
        # The gateway itself pickled its configuration.
        import base64
        import pickle

        from gateway.engine.vllm.grammars.backends import VllmBackends

        return VllmBackends(pickle.loads(base64.b64decode(config["vllm_config"])))  # noqa: S301
    from gateway.engine.vllm.grammars import stub_modules

    stub_modules.install_stubs()
    from gateway.engine.vllm.grammars.backends import StandaloneBackends

    for name in ("backend_xgrammar", "backend_guidance", "backend_outlines", "request"):
        stub_modules.import_backend(name)
    # vLLM's files import these on first use, which would be in the children.
    for name in ("xgrammar", "llguidance", "outlines_core"):
        importlib.import_module(name)
    return StandaloneBackends(config["settings"], config.get("tokenizer"))


if __name__ == "__main__":
    main()
