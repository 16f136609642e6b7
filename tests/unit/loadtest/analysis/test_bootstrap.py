from __future__ import annotations

import numpy as np
import pytest

from loadtest.analysis.bootstrap import BLOCKS_MIN, Resamples, bootstrap_interval, student_t_quantile
from loadtest.measure.histogram import Histogram
from loadtest.measure.result import TimelineSecond
from tests.unit.loadtest.fake_results import fake_result


@pytest.mark.parametrize(
    ("q", "degrees", "value"),
    [(0.975, 3, 3.182), (0.975, 5, 2.571), (0.975, 10, 2.228), (0.975, 30, 2.042), (0.95, 8, 1.860)],
)
def test_student_t_quantiles_equal_published_tables(q: float, degrees: float, value: float) -> None:
    assert student_t_quantile(q, degrees) == pytest.approx(value, rel=0.01)


def seconds(*values: float, stage: str = "measure") -> list[TimelineSecond]:
    """One second for each value, with ten samples of that many milliseconds."""
    seconds_: list[TimelineSecond] = []
    for at, value in enumerate(values):
        histogram = Histogram()
        histogram.add(round(value * 1000), 10)
        seconds_.append(TimelineSecond.model_validate({"t_s": at, "stage": stage, "ttft": histogram.to_dict()}))
    return seconds_


def test_resamples_have_the_length_of_the_run_and_no_preferred_second() -> None:
    resamples = Resamples.from_timeline(seconds(*range(1, 101)), 1)

    assert resamples.weights.sum(axis=1) == pytest.approx(100, abs=10)
    assert resamples.weights.mean(axis=0) == pytest.approx(1.0, abs=0.15)
    assert resamples.blocks == 10


def test_whole_blocks_are_resampled() -> None:
    """If a second was drawn, its neighbour was drawn, too, nine times of ten."""
    weights = Resamples.from_timeline(seconds(*range(1, 101)), 1).weights
    together = np.minimum(weights, np.roll(weights, 1, axis=1)).sum() / weights.sum()

    assert together > 0.88


def test_the_quantile_of_a_resample_is_that_of_its_seconds() -> None:
    values = [float(2**at) for at in range(8)]
    resamples = Resamples.from_timeline(seconds(*values), 1)
    for weights, found in zip(resamples.weights[:50], resamples.quantiles("ttft", [0.9])[0][:50], strict=True):
        histogram = Histogram()
        for value, times in zip(values, weights, strict=True):
            histogram.add(round(value * 1000), int(times) * 10) if times else None

        assert found * 1000 == pytest.approx(histogram.quantile(0.9), rel=0.01)


def test_sums_are_over_the_resampled_seconds() -> None:
    resamples = Resamples.from_timeline(seconds(1, 2, 3, 4, 5, 6), 1)
    ones = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    assert resamples.per_second(ones) == pytest.approx(resamples.weights[:, 0] / resamples.weights.sum(axis=1))
    assert resamples.share(ones, [2.0] * 6) == pytest.approx(
        resamples.weights[:, 0] / resamples.weights.sum(axis=1) / 2
    )
    assert resamples.share(ones, [0.0] * 6) == pytest.approx(0)


def test_only_the_measured_stage_counts() -> None:
    both = [*seconds(1000, 1000, stage="warmup"), *seconds(*[5.0] * 30)]

    assert Resamples.from_timeline(both, 1).quantiles("ttft", [1.0])[0] == pytest.approx(5, rel=0.01)


def test_long_runs_are_merged_into_cells_without_loss() -> None:
    run = fake_result(seconds=1500, rate=2.0, gaps=1)
    resamples = Resamples.from_timeline(run.timeline, 1)
    tokens = [float(each.output_tokens) for each in run.timeline if each.stage == "measure"]

    assert len(resamples.cells) == 500
    assert resamples.per_second(tokens).mean() * 3 == pytest.approx(sum(tokens) / 500, rel=0.02)
    assert resamples.blocks == pytest.approx(1500 / 23)


def test_a_short_or_empty_run_has_no_interval() -> None:
    assert bootstrap_interval(np.arange(2000.0), BLOCKS_MIN - 0.1) is None
    assert bootstrap_interval(np.full(2000, np.nan), 10) is None
    assert bootstrap_interval(Resamples.from_timeline([], 1).quantiles("ttft", [0.5])[0], 10) is None


def test_few_blocks_widen_the_interval() -> None:
    normal_values = np.random.default_rng(1).normal(0, 1, 2000)
    few, many = bootstrap_interval(normal_values, 5), bootstrap_interval(normal_values, 1000)

    assert few is not None
    assert many is not None
    assert many == (pytest.approx(-1.96, abs=0.15), pytest.approx(1.96, abs=0.15))
    assert few[0] < many[0] < many[1] < few[1]


def test_equal_seeds_give_equal_resamples() -> None:
    one, two, other = (Resamples.from_timeline(seconds(*range(1, 31)), seed).weights for seed in (1, 1, 2))

    assert (one == two).all()
    assert (one != other).any()
