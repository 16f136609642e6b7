"""How far the numbers of two runs may differ by chance: a block bootstrap over seconds. Pure and seeded.

Requests of neighbouring seconds share queues, batches and the load of the machine, so resampling single requests, or
single seconds, would take noise for a difference. Whole blocks of seconds are resampled instead, with replacement and
around the end (the circular block bootstrap: Politis and Romano, 1992, after Künsch, 1989); their length grows with the
cube root of the run's. Few blocks make intervals too narrow; they are widened with Student's t, as Hesterberg does
("What Teachers Should Know about the Bootstrap", 2015, section 4.4).

Variation from one run to the next that does not show within either is not covered; a comparison of a server with
itself, some minutes apart, measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.measure.histogram import bucket_middle
from loadtest.measure.result import TimelineSecond

CONFIDENCE = 0.95
# Of this number the 2.5 % on either side are 50, and the widened tails of short runs are not empty either.
_DRAWS = 2000
# An event in two blocks only is missing from a seventh of the resamples: too few to estimate its variation.
_DEFINED_SHARE = 0.9
# Fewer independent blocks do not allow an estimate of their variation.
BLOCKS_MIN = 4
_SHORTEST_S = 5
# The seconds of longer runs are first merged into this many cells: a quantile does not need more.
_CELLS = 600

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resamples:
    """The measured seconds of a run, resampled many times."""

    weights: FloatArray
    """How often each cell is in each resample."""
    cells: Sequence[Sequence[TimelineSecond]]
    blocks: float
    """The number of independent blocks in the run."""

    @classmethod
    def from_timeline(cls, timeline: Sequence[TimelineSecond], seed: int) -> Resamples:
        """From the measured stage of a timeline."""
        seconds = [second for second in timeline if second.stage == "measure"]
        size = max(1, ceil(len(seconds) / _CELLS))
        cells = [seconds[at : at + size] for at in range(0, len(seconds), size)]
        block_s = max(_SHORTEST_S, ceil(2 * len(seconds) ** (1 / 3)))
        length = max(1, min(ceil(block_s / size), len(cells)))
        return cls(_draw_weights(len(cells), length, seed), cells, len(seconds) / block_s)

    def quantiles(self, metric: str, shares: Sequence[float]) -> list[FloatArray]:
        """Quantiles of a metric's histograms in each resample, in milliseconds; NaN for an empty one."""
        histograms = [_buckets(cell, metric) for cell in self.cells]
        buckets = sorted({bucket for second in histograms for bucket in second})
        if not buckets:
            return [np.full(len(self.weights), np.nan) for _ in shares]
        column = {bucket: at for at, bucket in enumerate(buckets)}
        counts = np.zeros((len(self.cells), len(buckets)))
        for row, second in enumerate(histograms):
            for bucket, count in second.items():
                counts[row, column[bucket]] += count
        below = np.cumsum(self.weights @ counts, axis=1)
        values = np.array([bucket_middle(bucket) / 1000 for bucket in buckets])
        totals = below[:, -1]
        quantiles_ = []
        for q in shares:
            ranks = np.maximum(1, np.ceil(q * totals - 1e-9))
            quantiles_.append(np.where(totals > 0, values[np.argmax(below >= ranks[:, None], axis=1)], np.nan))
        return quantiles_

    def per_second(self, values: Sequence[float]) -> FloatArray:
        """The mean over the seconds, in each resample."""
        return self._sums(values) / self._sums([1.0] * len(values))

    def share(self, dividends: Sequence[float], divisors: Sequence[float]) -> FloatArray:
        """The quotient of two sums in each resample; zero where the divisor is."""
        top, bottom = self._sums(dividends), self._sums(divisors)
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)

    def _sums(self, values: Sequence[float]) -> FloatArray:
        size = len(self.cells[0]) if self.cells else 1
        cells = [sum(values[at : at + size]) for at in range(0, len(values), size)]
        return self.weights @ np.array(cells, dtype=np.float64)


def bootstrap_interval(values: FloatArray, blocks: float) -> tuple[float, float] | None:
    """The 95 % interval of resampled values from that many independent blocks; None if there are too few of either."""
    defined = values[np.isfinite(values)]
    if blocks < BLOCKS_MIN or len(defined) < _DEFINED_SHARE * _DRAWS:
        return None
    width = sqrt(blocks / (blocks - 1)) * student_t_quantile((1 + CONFIDENCE) / 2, blocks - 1)
    tail = NormalDist().cdf(-width)
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def student_t_quantile(q: float, degrees: float) -> float:
    """The q-quantile of Student's t (Abramowitz and Stegun, 26.7.5), to 1 % from 3 degrees of freedom on."""
    z = NormalDist().inv_cdf(q)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _draw_weights(cells: int, length: int, seed: int) -> FloatArray:
    weights = np.zeros((_DRAWS, cells))
    if not cells:
        return weights
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, cells, (_DRAWS, ceil(cells / length)))
    rows = np.repeat(np.arange(_DRAWS)[:, None], starts.shape[1], axis=1)
    for offset in range(length):
        np.add.at(weights, (rows, (starts + offset) % cells), 1.0)
    return weights


def _buckets(cell: Sequence[TimelineSecond], metric: str) -> dict[int, int]:
    counts: dict[int, int] = {}
    for second in cell:
        packed: Mapping[str, Any] = getattr(second, metric)
        for bucket, count in packed.get("buckets", ()):
            counts[bucket] = counts.get(bucket, 0) + count
    return counts
