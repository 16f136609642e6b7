from __future__ import annotations

import pytest

from loadtest.analysis.verdict import judge
from loadtest.measure.result import Outcome, Server, Summary
from loadtest.scenario.slo import Slo
from tests.unit.loadtest.fake_results import EMPTY, generator, integrity, latency_stats, limit, summary

QUIET = Server(scraped=False)
P90 = limit("ttft_p90_ms", "ttft_ms", "p90", 95)


def test_met_limits_are_a_pass() -> None:
    verdict = judge(summary(), generator(), integrity(), QUIET, Slo(limits=(P90,)))

    assert (verdict.outcome, verdict.exit_code) == (Outcome.PASS, 0)
    assert [check.name for check in verdict.checks] == ["ttft_p90_ms", "error_rate"]
    assert verdict.reasons[0].startswith("ttft_p90_ms is 89.6 ms, limit 95 ms: met (95 % interval ")
    assert "another run may miss it" in verdict.reasons[0]
    assert verdict.reasons[1] == "0 of 100 requests failed (0 %), limit 0 %: met"


def test_a_narrow_miss_shows_its_digits() -> None:
    found = summary(ttft_ms=latency_stats([500.04] * 400))
    verdict = judge(found, generator(), integrity(), QUIET, Slo(limits=(limit("x", "ttft_ms", "p50", 500),)))

    assert verdict.reasons[0].startswith("x is 500.040 ms, limit 500 ms: missed")


def test_a_clear_pass_has_no_warning() -> None:
    verdict = judge(summary(), generator(), integrity(), QUIET, Slo(limits=(limit("x", "ttft_ms", "p90", 500),)))

    assert "another run" not in verdict.reasons[0]


def test_a_missed_limit_comes_first() -> None:
    slo = Slo(limits=(P90, limit("e2e_p50_ms", "e2e_ms", "p50", 40)))
    verdict = judge(summary(), generator(), integrity(), QUIET, slo)

    assert (verdict.outcome, verdict.exit_code) == (Outcome.MISSED, 1)
    assert verdict.reasons[0].startswith(
        "e2e_p50_ms is 49.92 ms, limit 40 ms: missed (95 % interval 40.19 ms to 61.18 ms"
    )
    assert [check.met for check in verdict.checks] == [True, False, True]


def test_too_few_samples_for_a_quantile_are_reported() -> None:
    p99 = limit("ttft_p99_ms", "ttft_ms", "p99", 500)
    verdict = judge(summary(), generator(), integrity(), QUIET, Slo(limits=(p99,)))
    check = verdict.checks[0]

    assert check.met
    assert check.low is not None
    assert check.high is None
    assert "100 of the 368 samples that p99 needs" in verdict.reasons[0]
    assert "to no upper end" in verdict.reasons[0]


def test_a_limit_without_measurements_is_missed() -> None:
    verdict = judge(summary(ttft_ms=EMPTY), generator(), integrity(), QUIET, Slo(limits=(P90,)))

    assert verdict.outcome == Outcome.MISSED
    assert verdict.reasons[0] == "ttft_p90_ms cannot be judged: nothing was measured (limit 95 ms)"


def test_one_sample_has_an_interval_without_ends() -> None:
    verdict = judge(summary(ttft_ms=latency_stats([5])), generator(), integrity(), QUIET, Slo(limits=(P90,)))

    assert "from no lower end to no upper end" in verdict.reasons[0]


def test_planned_cancels_count_neither_as_errors_nor_as_requests() -> None:
    found = summary(ok=70, cancelled_by_plan=25, errors_by_kind={"reset": 4, "http_429": 1}, good=70)
    verdict = judge(found, generator(), integrity(), QUIET, Slo(error_rate_max=0.05, goodput_min=0.9))

    assert verdict.outcome == Outcome.MISSED
    assert [(check.name, check.value) for check in verdict.checks] == [("error_rate", 0.066667), ("goodput", 0.933333)]
    assert verdict.reasons[0] == "5 of 75 requests failed (6.67 %), limit 5 %: missed; reset 4, http_429 1"
    assert "70 of 75 requests were good (93.3 %, 10 a second), at least 90 % required: met" in verdict.reasons


def test_too_little_goodput_is_missed() -> None:
    verdict = judge(summary(good=80), generator(), integrity(), QUIET, Slo(goodput_min=0.9))

    assert verdict.exit_code == 1


def test_a_late_generator_takes_precedence_over_missed_limits() -> None:
    late = generator(invalid=["lateness p99 was 25 ms, limit 10 ms"])
    verdict = judge(summary(errors_by_kind={"reset": 5}), late, integrity(), QUIET, Slo())

    assert (verdict.outcome, verdict.exit_code) == (Outcome.INVALID, 3)
    assert verdict.reasons[0] == "the generator's numbers prove nothing: lateness p99 was 25 ms, limit 10 ms"
    assert "reset 5" in verdict.reasons[1]


def nothing() -> Summary:
    return summary(ttft_ms=EMPTY, itl_ms=EMPTY, tpot_ms=EMPTY, e2e_ms=EMPTY, requests=0, ok=0, good=0, output_tokens=0)


def test_a_run_without_a_request_proves_nothing() -> None:
    verdict = judge(nothing(), generator(), integrity(), QUIET, Slo(goodput_min=0.9))

    assert verdict.outcome == Outcome.INVALID


def test_integrity_errors_take_precedence_over_all() -> None:
    late = generator(invalid=["a dropped arrival"])
    violated = integrity(violations={"cross_talk": 1, "no_done": 3})
    verdict = judge(summary(errors_by_kind={"no_done": 3}), late, violated, QUIET, Slo())

    assert (verdict.outcome, verdict.exit_code) == (Outcome.INTEGRITY, 4)
    assert verdict.reasons[0] == "3 of 100 streams were incomplete or incorrect: no_done"


@pytest.mark.parametrize(("freed", "code"), [(True, 0), (None, 0), (False, 4)])
def test_work_not_freed_after_cancels_is_an_integrity_error(freed: bool | None, code: int) -> None:
    assert judge(summary(), generator(), integrity(freed_after_cancels=freed), QUIET, Slo()).exit_code == code


def test_left_over_work_is_reported_and_decides_nothing() -> None:
    server = Server(scraped=True, left_over={"vllm:num_requests_running": 2.0})
    verdict = judge(summary(), generator(), integrity(), server, Slo())

    assert verdict.exit_code == 0
    assert verdict.reasons[-1] == "when the run was over, vllm:num_requests_running was still 2, more than before it"
