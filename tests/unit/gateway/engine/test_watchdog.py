"""Whose silence it is, and when it is too long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.engine.os_processes import Usage
from gateway.engine.watchdog import Assessment, Observation, Watchdog

LOOK_S = 0.5


class Watch:
    """A watchdog that looks twice a second at an engine whose behaviour the test describes."""

    def __init__(self, *, cpu_share: float | None = 0.0, hang_timeout_s: float = 60.0) -> None:
        self.now_s = 1000.0
        self.began_s = self.now_s
        self.cpu_share = cpu_share
        self.cpu_s = 5.0
        self.is_stopped = False
        self.sent_s: float | None = None
        self.output_s = self.now_s
        self.is_behind = False
        self.watchdog = Watchdog(
            hang_timeout_s=hang_timeout_s, long_step_timeout_s=600, usage=self._usage, now_s=self.now_s
        )
        self.verdict = Assessment()

    def _usage(self) -> Usage | None:
        return None if self.cpu_share is None else Usage(self.cpu_s, self.is_stopped)

    def look(self, after_s: float = LOOK_S) -> Assessment:
        self.now_s += after_s
        self.cpu_s += (self.cpu_share or 0.0) * after_s
        self.verdict = self.watchdog.assess(self.now_s, Observation(self.sent_s, self.output_s, self.is_behind))
        return self.verdict

    def ask(self) -> None:
        self.sent_s = self.now_s
        self.look()
        self.began_s = self.now_s

    def until(self, wanted: Callable[[Assessment], object], most_s: float = 2000.0) -> float:
        """Seconds until a verdict is as wanted."""
        while not wanted(self.look()):
            assert self.now_s - self.began_s < most_s, self.verdict
        return self.now_s - self.began_s


def in_trouble(verdict: Assessment) -> bool:
    return verdict.unready_reason is not None


def is_dead(verdict: Assessment) -> bool:
    return verdict.is_dead


def test_an_engine_that_is_not_asked_or_answers_is_well() -> None:
    watch = Watch()
    for _ in range(500):
        assert watch.look() == Assessment()
    for _ in range(500):
        watch.sent_s = watch.now_s
        assert watch.look() == Assessment()
        watch.sent_s, watch.output_s = None, watch.now_s
        assert watch.look() == Assessment()


@pytest.mark.parametrize(("cpu_share", "is_stopped"), [(0.0, False), (0.01, False), (1.0, True), (None, False)])
def test_one_that_neither_answers_nor_computes_is_found_in_time(cpu_share: float | None, is_stopped: bool) -> None:
    """Hung, or stopped by a signal; and where nothing can be known of its processes, silence has to do."""
    watch = Watch(cpu_share=cpu_share)
    watch.is_stopped = is_stopped
    watch.ask()

    assert watch.until(in_trouble) <= 7
    assert not watch.verdict.is_dead
    assert watch.until(is_dead) == pytest.approx(60, abs=1)


def test_a_long_step_is_work_and_one_without_end_is_not() -> None:
    watch = Watch(cpu_share=1.0)
    watch.ask()

    assert watch.until(in_trouble) == pytest.approx(60, abs=1), "what comes now waits for a minute at the least"
    assert "computes" in str(watch.verdict.unready_reason)
    assert watch.until(is_dead) == pytest.approx(600, abs=1)


def test_a_step_of_seventy_seconds_ends_well() -> None:
    watch = Watch(cpu_share=0.9)
    watch.ask()
    for _ in range(140):
        assert not watch.look().is_dead
    watch.sent_s, watch.output_s = None, watch.now_s

    assert watch.look() == Assessment()


def test_one_long_step_after_another_is_work() -> None:
    """At its end an output comes, and a moment later the answer; who looks in between sees one without the other."""
    watch = Watch(cpu_share=0.9)
    for _ in range(20):
        watch.ask()
        for _ in range(140):
            assert not watch.look().is_dead
        watch.output_s = watch.now_s
        assert not watch.look().is_dead
        watch.sent_s, watch.output_s = None, watch.now_s
        assert watch.look() == Assessment()


def test_an_engine_that_stops_computing_in_a_long_step_is_hung() -> None:
    watch = Watch(cpu_share=1.0)
    watch.ask()
    for _ in range(200):
        assert not watch.look().is_dead
    watch.cpu_share = 0.0
    watch.began_s = watch.now_s

    assert watch.until(is_dead) <= 6


def test_a_pause_of_ours_is_not_the_engines_silence() -> None:
    """A stopped process, a migrated machine: when it goes on, a minute has passed and the answer waits to be read."""
    watch = Watch(cpu_share=0.0)
    watch.ask()

    assert watch.look(after_s=62) == Assessment()
    assert watch.look() == Assessment()

    watch.sent_s, watch.output_s = None, watch.now_s

    assert watch.look() == Assessment()


def test_pauses_again_and_again_are_none_either() -> None:
    watch = Watch(cpu_share=0.0)
    for _ in range(50):
        watch.ask()
        assert watch.look(after_s=30) == Assessment()
        watch.sent_s, watch.output_s = None, watch.now_s
        watch.look()


def test_a_backlog_of_ours_is_no_reason_to_end_the_engine() -> None:
    watch = Watch(cpu_share=0.0)
    watch.is_behind = True
    watch.ask()

    assert watch.until(in_trouble) == pytest.approx(10, abs=1)
    for _ in range(2000):
        assert not watch.look().is_dead


def test_an_engine_that_goes_on_but_receives_nothing_is_found() -> None:
    """A send that never arrives: its outputs come as before, and nothing new gets through."""
    watch = Watch(cpu_share=1.0)
    watch.ask()

    def look() -> Assessment:
        watch.output_s = watch.now_s
        return watch.look()

    took = 0
    while not look().unready_reason:
        took += 1
    assert took * LOOK_S <= 7
    assert "have not reached the engine" in str(watch.verdict.unready_reason)
    while not look().is_dead:
        took += 1
    assert took * LOOK_S == pytest.approx(60, abs=2)


def test_short_limits_are_kept_as_well() -> None:
    watch = Watch(cpu_share=0.0, hang_timeout_s=3)
    watch.ask()

    assert watch.until(in_trouble) == pytest.approx(1.5, abs=1)
    assert watch.until(is_dead) == pytest.approx(3, abs=1)
