"""The comparison with the ground truth finds every error: a run with correct numbers, then spoiled one by one."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.bench.check_truth import MatchedRequest, compare, is_causality_violated, match_requests, start_bounds_us
from loadtest.measure.result import Result
from loadtest.mock.ground_truth import GroundTruth, TrueRecord
from tests.unit.loadtest import fake_results

BEGAN_NS = 5_000_000_000_000
TRANSIT_NS = 20_000
STREAMS, EVENTS, GAP_NS, TTFT_NS = 200, 20, 40_000_000, 150_000_000


def truth() -> GroundTruth:
    """A stream every 50 ms, each of 20 tokens."""
    records = []
    for number in range(STREAMS):
        arrived_ns = BEGAN_NS + number * 50_000_000
        sent_ns = [arrived_ns + TTFT_NS + event * (GAP_NS + number * 1000) for event in range(EVENTS)]
        records.append(TrueRecord(f"id-{number}", "", True, None, arrived_ns, 200, sent_ns, [1] * EVENTS))
    return GroundTruth(records, {"on_time": True})


def line(record: TrueRecord, late_us: int = 0) -> dict[str, Any]:
    """The log line of an exact client."""
    sent_us = (record.arrived_ns - TRANSIT_NS - BEGAN_NS) // 1000
    first_us = (record.sent_ns[0] + TRANSIT_NS - BEGAN_NS) // 1000
    return {"id": record.id, "intended_us": sent_us, "sent_us": sent_us, "first_content_us": first_us + late_us}


def result(found: list[MatchedRequest], ground_truth: GroundTruth, **changes: object) -> Result:
    """The result of a client that measures exactly, from second 2 to 8."""
    ttfts = fake_results.latency_stats(
        [(pair.line["first_content_us"] - pair.line["sent_us"]) / 1000 for pair in found]
    )
    within = [t for r in ground_truth.records for t in r.sent_ns if 2e9 <= t - BEGAN_NS < 8e9]
    summary = fake_results.summary(
        **{
            "ttft_ms": ttfts,
            "ttft_from_sent_ms": ttfts,
            "itl_ms": fake_results.latency_stats([gap for pair in found for gap in pair.gaps_ms]),
            "max_stall_ms": fake_results.latency_stats([max(pair.gaps_ms) for pair in found]),
            "output_tokens": len(within),
        }
        | changes
    )
    base = fake_results.fake_result(seconds=6, warmup=2)
    run = fake_results.run(warmup_s=2.0, duration_s=6.0)
    return base.model_copy(update={"summary": summary, "run": run})


def check(lines: list[dict[str, Any]], ground_truth: GroundTruth, **changes: object) -> set[str]:
    """The metrics of the missed figures."""
    run = fake_results.run(warmup_s=2.0, duration_s=6.0)
    found = match_requests(fake_results.fake_result().model_copy(update={"run": run}), lines, ground_truth)
    return {
        row.metric for row in compare(result(found, ground_truth, **changes), found, ground_truth) if not row.is_met
    }


def test_exact_numbers_are_met_and_the_start_is_found() -> None:
    ground_truth = truth()
    lines = [line(record) for record in ground_truth.records]
    run = fake_results.run(warmup_s=2.0, duration_s=6.0)
    found = match_requests(fake_results.fake_result().model_copy(update={"run": run}), lines, ground_truth)

    assert len(found) == 120
    assert sum(start_bounds_us(found)) / 2 == pytest.approx(BEGAN_NS / 1000, abs=2)
    assert not is_causality_violated(found)
    assert check(lines, ground_truth) == set()


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"itl_ms": fake_results.latency_stats([45.0] * 120 * 19)}, {"ITL"}),
        ({"itl_ms": fake_results.latency_stats([40.1] * (120 * 19 - 1))}, {"count"}),
        ({"output_tokens": 1}, {"count"}),
        ({"max_stall_ms": fake_results.latency_stats([60.0] * 120)}, {"longest gap"}),
        ({"ttft_ms": fake_results.latency_stats([156.0] * 120)}, {"TTFT from intended"}),
        ({"ttft_from_sent_ms": fake_results.latency_stats([144.0] * 120)}, {"TTFT from sending", "TTFT from arrival"}),
    ],
)
def test_a_wrong_number_is_found(changes: dict[str, object], missed: set[str]) -> None:
    ground_truth = truth()

    assert check([line(record) for record in ground_truth.records], ground_truth, **changes) == missed


def test_an_effect_before_its_cause_is_found() -> None:
    ground_truth = truth()
    lines = [line(record, late_us=-100 if record.id == "id-77" else 0) for record in ground_truth.records]

    assert is_causality_violated(
        [MatchedRequest(one, record) for one, record in zip(lines, ground_truth.records, strict=True)]
    )


def test_a_stream_that_was_never_sent_is_found() -> None:
    ground_truth = truth()
    lines = [line(record) | {"id": "another"} for record in ground_truth.records]

    with pytest.raises(KeyError, match="another"):
        check(lines, ground_truth)
