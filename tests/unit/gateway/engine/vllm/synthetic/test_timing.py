"""How long a step of the synthetic engine takes, and which goes wrong. Processes of their own die and hang here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.engine.vllm.synthetic.timing import EXIT_CODE, FaultControl, StepTiming
from gateway.settings_sections import Synthetic


def process(takes: str) -> subprocess.Popen[str]:
    script = (
        "from gateway.engine.vllm.synthetic.timing import StepTiming\n"
        f"print('began', flush=True)\n{takes}\nprint('ended', flush=True)"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_the_time_of_a_step_is_put_together_from_its_parts() -> None:
    pace = StepTiming(step_ms=10, sequence_us=5, prefill_us=2)

    assert pace.step_s(1, 0, 0) == pytest.approx(0.010)
    assert pace.step_s(1, 100, 0) == pytest.approx(0.0105)
    assert pace.step_s(1, 100, 1000) == pytest.approx(0.0125)


def test_steps_get_slow_at_their_number_and_stay_so() -> None:
    pace = StepTiming(step_ms=1, slow_at_step=3, slow_factor=20)

    assert [pace.step_s(step, 1, 0) for step in (2, 3, 4)] == pytest.approx([0.001, 0.020, 0.020])


def test_the_settings_are_the_numbers_that_it_accepts() -> None:
    command = FaultControl(Synthetic().model_dump(exclude={"enabled"}))

    assert command.timing == StepTiming(step_ms=10, slow_factor=10)


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(TypeError, match="speed"):
        FaultControl({"speed": 1})


def test_the_control_file_changes_a_running_engine_and_nonsense_in_it_does_not(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    command = FaultControl({"step_ms": 0, "slow_factor": 3, "control_file": str(file)})

    def after(text: str | None) -> StepTiming:
        if text is None:
            file.unlink()
        else:
            file.write_text(text, encoding="utf-8")
        command.reload()
        return command.timing

    assert after('{"slow_at_step": 2, "sequence_us": 1.5}') == StepTiming(
        slow_factor=3, slow_at_step=2, sequence_us=1.5
    )
    assert after('{"slow_at') == StepTiming(slow_factor=3, slow_at_step=2, sequence_us=1.5)
    assert after("[1]") == command.timing
    assert after('{"speed": 9}') == StepTiming(slow_factor=3)
    assert after('{"step_ms": 0.25}') == StepTiming(slow_factor=3, step_ms=0.25)
    assert after(None) == StepTiming(slow_factor=3, step_ms=0.25)
    assert after("") == StepTiming(slow_factor=3)


def test_a_step_without_time_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []
    monkeypatch.setattr(time, "sleep", slept_s.append)
    StepTiming(die_at_step=2, hang_at_step=3).run_step(1, 1, 1)

    assert slept_s == []


def test_a_step_sleeps_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    slept_s: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        slept_s.append(seconds)
        # Half as long as was asked for: a signal can end a sleep early.
        now_s += seconds / 2 if len(slept_s) == 1 else seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    StepTiming(step_ms=10, prefill_us=2).run_step(1, 1, 1000)

    assert slept_s == pytest.approx([0.012, 0.006])
    assert now_s == pytest.approx(100.012)


def test_the_process_ends_in_the_step_that_is_named() -> None:
    with process("StepTiming(die_at_step=2).run_step(1, 1, 0); StepTiming(die_at_step=2).run_step(2, 1, 0)") as one:
        assert one.communicate(timeout=20)[0] == "began\n"

    assert one.returncode == EXIT_CODE


def test_a_step_that_hangs_does_not_heed_sigterm() -> None:
    """Like one that waits for a device. Only a SIGKILL ends it."""
    with process("StepTiming(hang_at_step=1).run_step(1, 1, 0)") as one:
        try:
            while not has(one, "SigBlk", signal.SIGTERM):
                assert one.poll() is None
            one.send_signal(signal.SIGTERM)

            assert has(one, "ShdPnd", signal.SIGTERM)
            assert one.poll() is None
        finally:
            one.kill()
        assert one.communicate()[0] == "began\n"


def has(one: subprocess.Popen[str], mask: str, number: signal.Signals) -> bool:
    """Whether the signal is in that mask of the process, as the kernel reports it."""
    status = Path(f"/proc/{one.pid}/status").read_text(encoding="ascii")
    value = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{mask}:"))
    return bool(int(value, 16) >> (number - 1) & 1)
