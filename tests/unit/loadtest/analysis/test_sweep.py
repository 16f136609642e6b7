"""With a queue whose limit is known: M/M/1, where the probability of waiting for longer than t is a/m * exp((a - m) *
t)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from math import exp, log
from pathlib import Path

import pytest

from loadtest.analysis.sweep import SweepResult, sweep
from loadtest.measure.histogram import Histogram
from loadtest.measure.result import LatencyStats, Outcome, Result, Server
from loadtest.scenario.slo import Slo
from tests.unit.loadtest.fake_results import fake_result, generator, integrity, limit, summary

SERVED = 20.0
LIMIT_MS = 200.0
SLO = Slo(limits=(limit("ttft_p90_ms", "ttft_ms", "p90", LIMIT_MS),))
EMPTY = fake_result(seconds=2, rate=0.0)


def wait_ms(rate: float, q: float) -> float:
    """The q-quantile of the wait."""
    busy = rate / SERVED
    return max(0.0, log((1 - q) / busy) / (rate - SERVED)) * 1000 if busy < 1 else 60_000.0


def true_limit() -> float:
    low, high = 0.1, SERVED
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if wait_ms(middle, 0.9) <= LIMIT_MS else (low, middle)
    return low


TRUE = true_limit()


def result(rate: float, waits_ms: list[float], **changes: object) -> Result:
    counted = Histogram()
    for value in waits_ms:
        counted.add(round(value * 1000))
    found = summary(
        ttft_ms=LatencyStats.from_histogram(counted), achieved_rps=rate, asked_rps=rate, output_tokens_per_s=rate * 50
    )
    return EMPTY.model_copy(update={"summary": found, **changes})


def exact(rate: float) -> Result:
    """A run without randomness."""
    return result(rate, [wait_ms(rate, (i + 0.5) / 1000) for i in range(1000)])


def queue(rng: random.Random) -> Callable[[float], Result]:
    """A run of 20,000 requests through a simulated queue (Lindley's recursion)."""

    def measure(rate: float) -> Result:
        wait, waits = 0.0, []
        for _ in range(20_000):
            waits.append(wait * 1000)
            wait = max(0.0, wait + rng.expovariate(SERVED) - rng.expovariate(rate))
        return result(rate, waits)

    return measure


def test_the_formula_is_that_of_the_queue() -> None:
    measured = queue(random.Random(1))(15.0).summary.ttft_ms.p90

    assert measured == pytest.approx(wait_ms(15.0, 0.9), rel=0.1)
    assert pytest.approx(TRUE / SERVED * exp((TRUE - SERVED) * LIMIT_MS / 1000)) == 0.1


@pytest.mark.parametrize("low", [0.5, 3.0, 9.0])
@pytest.mark.parametrize("precision", [0.2, 0.05, 0.01])
def test_the_limit_is_found_to_the_precision_asked_for(low: float, precision: float) -> None:
    found = sweep(exact, SLO, low, 100, precision)

    assert found.limit is not None
    # 0.8 %: the precision of the histogram.
    assert found.limit * 0.99 <= TRUE <= found.limit * (1 + precision) * 1.01
    assert found.notes == []
    assert [step.rate for step in found.steps].count(found.limit) == 2


@pytest.mark.parametrize("seed", range(5))
def test_the_limit_of_a_simulated_queue_is_found(seed: int) -> None:
    found = sweep(queue(random.Random(seed)), SLO, 1, 100, 0.05)

    assert found.limit == pytest.approx(TRUE, rel=0.08)


def test_a_search_costs_few_runs() -> None:
    assert len(sweep(exact, SLO, 1, 100, 0.05).steps) <= 18


def test_a_miss_is_measured_once_more() -> None:
    """A hiccup at the third step is not the limit."""
    rates: list[float] = []

    def measure(rate: float) -> Result:
        rates.append(rate)
        return exact(50.0) if len(rates) == 3 else exact(rate)

    found = sweep(measure, SLO, 1, 100, 0.05)

    assert rates[:5] == [1, 2, 4, 4, 8]
    assert found.limit == pytest.approx(TRUE, rel=0.05)
    assert found.notes == ["at 4/s 1 of 2 runs met the SLO: the limit is not sharp"]


def test_a_rate_that_passed_by_chance_is_withdrawn() -> None:
    """The rate that is found is measured again; here it passes once, and never after."""
    seen: dict[float, int] = {}

    def measure(rate: float) -> Result:
        seen[rate] = seen.get(rate, 0) + 1
        return exact(5.0) if TRUE < rate < TRUE * 1.15 and seen[rate] == 1 else exact(rate)

    found = sweep(measure, SLO, 1, 100, 0.05)

    assert found.limit is not None
    assert found.limit <= TRUE * 1.01
    assert any(note.endswith("runs met the SLO: the limit is not sharp") for note in found.notes)


def test_too_many_withdrawn_rates_end_the_search() -> None:
    """Every rate passes once and misses ever after."""
    seen: set[float] = set()

    def measure(rate: float) -> Result:
        first = rate not in seen
        seen.add(rate)
        return exact(1.0 if first and rate < 50 else 50.0)

    found = sweep(measure, SLO, 1, 100, 0.05)

    assert found.ended.endswith("runs vary too much for more") or found.limit is None
    assert len(found.steps) < 60


def test_no_rate_above_a_failed_one_is_the_limit() -> None:
    """A server that is bad between 5 and 7 and good again at 8: the search passes 8, finds 16 bad, and reports only
    measured rates."""
    found = sweep(lambda rate: exact(50.0 if 5 < rate < 7 else rate), SLO, 1, 100, 0.05)

    failed = [step.rate for step in found.steps if step.outcome != Outcome.PASS]
    assert found.limit is not None
    assert found.limit < min(failed)


def test_the_lowest_rate_must_pass() -> None:
    found = sweep(exact, SLO, 30, 100, 0.05)

    assert (found.limit, found.autoscaler, len(found.steps)) == (None, None, 2)
    assert found.headline == "No rate met the SLO: even 30/s missed the SLO"


def test_a_limit_above_the_search_is_reported() -> None:
    found = sweep(exact, SLO, 1, 6, 0.05)

    assert found.limit == 6
    assert [step.rate for step in found.steps] == [1, 2, 4, 6, 6]
    assert found.ended == "the highest rate of the search, 6/s, met the SLO: the limit may lie above it"


def test_a_generator_that_cannot_keep_up_ends_the_search() -> None:
    late = generator(invalid=["lateness p99 was 25 ms, limit 10 ms"])
    found = sweep(
        lambda rate: exact(rate).model_copy(update={"generator": late} if rate > 7 else {}), SLO, 1, 100, 0.05
    )

    assert found.limit == 4
    assert [step.rate for step in found.steps] == [1, 2, 4, 8, 8]
    assert found.ended.startswith("the generator could not keep up at 8/s")


def test_integrity_errors_are_no_pass_and_are_noted() -> None:
    violated = integrity(violations={"cross_talk": 1})
    found = sweep(
        lambda rate: exact(rate).model_copy(update={"integrity": violated} if rate > 3 else {}), SLO, 1, 100, 0.3
    )

    assert found.limit is not None
    assert found.limit <= 3
    assert "examine those first" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"low": 0}, "low (0) must be above 0"), ({"low": 9, "high": 8}, "not above high (8)"),
     ({"precision": 5}, "precision (5) is a part of the rate"), ({"replicas": 0}, "replicas (0) must be at least 1")],
)  # fmt: skip
def test_invalid_arguments_are_explained(changes: dict[str, float], message: str) -> None:
    arguments = {"low": 1, "high": 8, "precision": 0.05, "replicas": 1, **changes}
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared below
        sweep(
            exact, SLO, arguments["low"], arguments["high"], arguments["precision"], replicas=int(arguments["replicas"])
        )

    assert message in str(error.value)


def scraped(rate: float, **series: float) -> Result:
    """With gauges that were 1000 during warm-up and drain."""
    names = {
        "running": "vllm:num_requests_running",
        "active": "sluice_streams_active",
        "waiting": "vllm:num_requests_waiting",
    }
    found = {
        names[name]: [[1.0, 1000.0], *([5.0 + t, value] for t in range(60)), [70.0, 1000.0]]
        for name, value in series.items()
    }
    return exact(rate).model_copy(
        update={"server": Server(scraped=True, series=found), "run": fake_result(seconds=60).run}
    )


def test_the_autoscalers_target_is_four_fifths_of_the_limit() -> None:
    found = sweep(lambda rate: scraped(rate, running=rate * 4, active=1, waiting=2.4), SLO, 1, 8, 0.05, replicas=2)

    assert found.autoscaler is not None
    assert found.autoscaler.source == "vllm:num_requests_running"
    assert found.autoscaler.running_at_limit == 16
    assert found.autoscaler.running == 12
    assert found.autoscaler.waiting == 2
    assert (
        "target of running requests per replica: 12 (vllm:num_requests_running at the limit: 16, times 0.8)"
        in found.text()
    )


def test_without_vllms_gauges_those_of_sluice_or_the_client_are_used() -> None:
    from_sluice = sweep(lambda rate: scraped(rate, active=20), SLO, 1, 1, 0.05).autoscaler
    from_client = sweep(lambda _: fake_result(seconds=30, rate=4.0, scraped=False), Slo(), 1, 1, 0.05).autoscaler

    assert from_sluice is not None
    assert from_client is not None
    assert (from_sluice.source, from_sluice.running, from_sluice.waiting) == ("sluice_streams_active", 16, 1)
    assert from_client.source == "requests in flight, by the client"
    assert from_client.running == int(from_client.running_at_limit * 0.8) > 1


def test_without_running_requests_there_is_no_target() -> None:
    found = sweep(exact, SLO, 1, 1, 0.05)

    assert (found.autoscaler, found.autoscaler_advice()) == (None, [])


def test_every_step_is_reported() -> None:
    sentences: list[str] = []
    sweep(exact, SLO, 1, 2, 0.5, on_step=sentences.append)

    assert len(sentences) == 3
    assert sentences[0].startswith("1/s: pass; ttft_p90_ms is ")


def test_a_written_result_can_be_read_again(tmp_path: Path) -> None:
    found = sweep(exact, SLO, 1, 100, 0.05)
    found.write(tmp_path / "out")
    page = (tmp_path / "out/sweep.html").read_text(encoding="utf-8")

    assert SweepResult.model_validate_json((tmp_path / "out/sweep.json").read_text(encoding="utf-8")) == found
    assert json.loads((tmp_path / "out/sweep.json").read_text(encoding="utf-8"))["schema"] == "sluice-load-sweep/1"
    assert found.headline in page
    assert "SLO 200 ms" in page
    assert page.count('<svg class="chart"') == 3
    assert page.count('class="cross') > page.count('class="swatch') / 10


def test_the_table_has_a_row_for_each_run() -> None:
    found = sweep(exact, SLO, 1, 100, 0.2)
    lines = found.text().splitlines()

    assert lines[0].split() == ["rate", "result", "achieved", "good", "tokens/s", "ttft_p90_ms", "error_rate"]
    assert [line.split()[0] for line in lines[1 : len(found.steps) + 1]] == [
        f"{step.rate:.4g}/s" for step in sorted(found.steps, key=lambda step: step.rate)
    ]
    assert found.headline in lines
