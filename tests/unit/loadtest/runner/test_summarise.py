"""From aggregates to the result document, and the reasons that make a run invalid."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.generator.health import GeneratorHealth
from loadtest.measure.aggregates import Aggregates, Window
from loadtest.measure.record import ReadMode, Record
from loadtest.runner.summarise import CollectedRun
from loadtest.scenario.loader import parse

MS, SECOND = 1_000_000, 1_000_000_000
WINDOW = Window.from_stages(0, 1.0, 4.0)


def collected(late_ms: int = 1, sent: int = 8, **scenario: Any) -> CollectedRun:
    """Eight requests due in a measured stage of four seconds, of which `sent` were sent, `late_ms` late."""
    document = {
        "name": "x",
        "load": {"kind": "constant", "rate": 2},
        "stages": {"warmup_s": 1, "measure_s": 4, "drain_s": 1},
        "workloads": [{"name": "w"}],
        **scenario,
    }
    aggregates = Aggregates()
    for number in range(8):
        due_ns = SECOND + number * SECOND // 2
        aggregates.on_due(WINDOW, due_ns)
        if number < sent:
            record = Record(number, 1, "w", "default", "m", False, ReadMode.PLAIN, due_ns, due_ns + late_ms * MS)
            record.sent_ns, record.done_ns = record.started_ns, record.started_ns + 50 * MS
            record.ended_ns, record.output_tokens = record.done_ns, 10
            aggregates.on_started(WINDOW, record)
            aggregates.on_ended(WINDOW, record)
    return CollectedRun(parse(document, "here"), aggregates, 1)


def test_a_summary_has_rates_of_the_measured_stage() -> None:
    summary = collected().summary()

    assert (summary.requests, summary.ok, summary.asked_rps, summary.achieved_rps) == (8, 8, 2, 2)
    assert (summary.output_tokens, summary.output_tokens_per_s) == (80, 20)
    assert summary.e2e_ms.count == 8


def test_a_closed_loop_has_no_due_rate() -> None:
    assert collected(load={"kind": "closed", "users": 1}).summary().asked_rps is None


def test_the_timeline_has_stages_and_no_gaps() -> None:
    timeline = collected().timeline()

    assert [second.t_s for second in timeline] == [0, 1, 2, 3, 4]
    assert [second.stage for second in timeline] == ["warmup", *["measure"] * 4]


def test_a_sound_generator_has_no_reason() -> None:
    assert collected().generator().invalid == []


def test_each_limit_of_the_generator_has_its_reason() -> None:
    run = collected(late_ms=30, sent=6, max_in_flight=3)
    health = GeneratorHealth(cpu_share_max=0.95)
    health.lag.add(20_000)
    run.worker_healths.append(health)
    run.aggregates.on_dropped(WINDOW, 2 * SECOND, "w", "default")
    run.notes.append("a worker ended early")

    assert run.generator().invalid == [
        "a worker ended early",
        "requests were sent late: p99 30.0 ms, limit 10 ms",
        "the generator's loop lagged: p99 20.0 ms, limit 10 ms",
        "a worker used 95% of a core, limit 90%; give it more workers",
        "1.50 requests/s were sent where 2.00 were due: 75.0%, at least 99% is needed",
        "1 arrivals were dropped, because max_in_flight (3 per worker) was reached",
    ]


@pytest.mark.parametrize("freed", [True, False, None])
def test_integrity_counts_violations(freed: bool | None) -> None:
    run = collected()
    run.aggregates.violations["no_done"] = 2

    assert (run.integrity(freed).violations, run.integrity(freed).freed_after_cancels) == ({"no_done": 2}, freed)
