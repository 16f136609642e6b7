"""Starts the front ends that are compared, each with an engine of its own on the same synthetic executor, and reads
their figures from /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.local_server import free_port, is_ready

MODEL = "sluice-demo"
CONTEXT = 32_768


def split_cpus() -> tuple[set[int], set[int]]:
    """A CPU for the front end, and another for engine and client; both sets are the same where there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return ({cpus[0]}, {cpus[1]}) if len(cpus) > 1 else (set(cpus), set(cpus))


@dataclass
class FrontEnd:
    """One running server. `front` and `engine` are the process ids whose CPU time counts as either's."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    control: Path
    log: Path
    front: list[int] = field(default_factory=list)
    engine: list[int] = field(default_factory=list)

    def wait_ready(self, within_s: float = 240) -> None:
        """Wait until it serves, then find its processes. Raises SystemExit with its last output if it does not."""
        deadline = time.monotonic() + within_s
        while not is_ready(f"http://127.0.0.1:{self.port}", "/v1/models"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} did not start:\n" + self.log.read_text(errors="replace")[-3000:])
            time.sleep(0.3)
        family = _process_tree(self.process.pid)
        self.engine = [pid for pid in family if "EngineCore" in _command(pid)]
        rust = [pid for pid in family if "vllm-rs" in _command(pid)]
        self.front = rust or [self.process.pid]

    def set_timing(self, **numbers: float) -> None:
        """Change the engine's timing, see `synthetic:` in the settings."""
        self.control.write_text(json.dumps(numbers), encoding="utf-8")
        time.sleep(0.2)

    def pin(self, front: set[int], engine: set[int]) -> None:
        """Bind every thread of the front end and of the engine to their CPUs."""
        for pids, cpus in ((self.front, front), (self.engine, engine)):
            for pid in pids:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), cpus)

    def cpu_s(self) -> float:
        """CPU seconds that the front end has used, user and system."""
        return sum(cpu_s(pid) for pid in self.front)

    def engine_cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.engine)

    def peak_rss_mb(self) -> float:
        """The peak memory of the front end, in MB."""
        peaks = [_proc_status(pid, "VmHWM") for pid in self.front]
        return round(sum(peaks) / 1000, 1)

    def stop(self) -> None:
        """Stop it with all processes that it has started."""
        family = _process_tree(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start(
    name: str, folder: Path, vllm_rs: Path | None = None, context: int = CONTEXT, before: Path | None = None
) -> FrontEnd:
    """Start `sluice`, `vllm` (Python) or `rust` on an engine without a model, or `sluice-real` and `vllm-real` on the
    demo model. `context` is the longest sequence, in tokens, where there is no model. A name that begins with `before`
    is Sluice as in the checkout `before`, which has a `.venv` of its own."""
    port = free_port()
    control = folder / f"{name}.json"
    control.write_text("{}", encoding="utf-8")
    log = folder / f"{name}.log"
    argv, env = _command_line(name, port, control, vllm_rs, context)
    with log.open("wb") as out:
        cwd = None
        if name.startswith("before"):
            assert before is not None
            # `python -m` imports from the working directory.
            cwd, argv[0] = before, str(before / ".venv/bin/python")
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **env},
            start_new_session=True,
        )
    return FrontEnd(name, process, port, control, log)


def _command_line(
    name: str, port: int, control: Path, vllm_rs: Path | None, context: int
) -> tuple[list[str], dict[str, str]]:
    real = name.endswith("-real")
    if name.startswith(("sluice", "before")):
        env = {"SLUICE_ADMISSION__MAX_CONCURRENT": "4096"}
        if not real:
            env |= {
                "SLUICE_SYNTHETIC__ENABLED": "true",
                "SLUICE_SYNTHETIC__STEP_MS": "0",
                "SLUICE_SYNTHETIC__CONTROL_FILE": str(control),
                "SLUICE_ENGINE__MAX_MODEL_LEN": str(context),
            }
        return [sys.executable, "-m", "gateway", "serve", "--port", str(port)], env
    from gateway import demo
    from gateway.engine.vllm.startup.engine_arguments import vllm_command_line
    from gateway.engine_plan import plan_engine
    from gateway.settings import Settings

    numbers: dict[str, Any] = {} if real else {"enabled": True, "step_ms": 0, "control_file": control}
    engine = {} if real else {"max_model_len": context}
    settings = Settings.model_validate({"synthetic": numbers, "engine": engine})
    plan = plan_engine(settings, None, (), None, lambda _: None)
    argv = vllm_command_line(plan)
    # The model is positional in `vllm serve`.
    at = argv.index("--model")
    del argv[at : at + 2]
    if plan.synthetic is not None:
        argv += ["--distributed-executor-backend", "gateway.engine.vllm.synthetic.executor.SyntheticExecutor"]
        argv += ["--additional-config", json.dumps({"sluice_synthetic": dict(plan.synthetic)})]
    env = {
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if name == "rust":
        assert vllm_rs is not None
        env |= {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(vllm_rs.resolve())}
    else:
        # Ours writes one line a request; this is the same.
        argv += ["--uvicorn-log-level", "warning"]
    return [
        sys.executable, "-m", "loadtest.bench.vllm_command", "serve", str(demo.MODEL_PATH),
        "--host", "127.0.0.1", "--port", str(port), *argv,
    ], env  # fmt: skip


def cpu_s(pid: int) -> float:
    """CPU seconds of one process, all its threads. From the scheduler, to the nanosecond: /proc/PID/stat is sampled by
    a timer tick on many kernels, and would charge too much or too little to a server that works for a moment after each
    of its engine's timers."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile.
        with suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _proc_status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _process_tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
    tree, newest = [pid], {pid}
    while newest:
        newest = {child for child, parent in parents.items() if parent in newest}
        tree += sorted(newest)
    return tree
