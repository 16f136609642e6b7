"""Confidence intervals of quantiles. Pure.

The interval is by order statistics, which assume nothing about the distribution: the number of samples out of n that
lie below the true q-quantile is binomial (n, q), so two ranks enclose the quantile with a known probability (David and
Nagaraja, "Order Statistics", section 7.1; Hahn and Meeker, "Statistical Intervals", chapter 5). Where the upper rank
would be n + 1, the samples give no upper bound.

Samples are taken as independent. Gaps between tokens are not quite independent (streams share the engine's steps), so
their intervals are somewhat too narrow.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, exp, lgamma, log, sqrt

from loadtest.measure.histogram import Histogram

CONFIDENCE = 0.95


def samples_needed(q: float, confidence: float = CONFIDENCE) -> int:
    """The smallest number of samples that gives an upper bound: 368 for the 99th percentile at 95 %."""
    return ceil(log((1 - confidence) / 2) / log(q))


@lru_cache(maxsize=256)
def order_ranks(count: int, q: float, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """The ranks (from 1) between which the quantile lies; None where there is no such rank."""
    tail = (1 - confidence) / 2
    # Beyond ten standard deviations probabilities do not add up to a tail.
    reach = ceil(10 * sqrt(count * q * (1 - q))) + 10
    first, last = max(0, int(count * q) - reach), min(count, int(count * q) + reach)
    probabilities = [_binomial(count, q, below) for below in range(first, last + 1)]

    low, total = first, 0.0
    for probability in probabilities:
        total += probability
        if total > tail:
            break
        low += 1
    high, total = last + 1, 0.0
    for probability in reversed(probabilities):
        total += probability
        if total > tail:
            break
        high -= 1
    return low or None, high if high <= count else None


def quantile_interval(
    histogram: Histogram, q: float, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """The bounds of the quantile in microseconds; None where the samples give none."""
    if not histogram.count:
        return None, None
    low, high = order_ranks(histogram.count, q, confidence)
    return (
        None if low is None else histogram.quantile(low / histogram.count),
        None if high is None else histogram.quantile(high / histogram.count),
    )


def _binomial(count: int, q: float, below: int) -> float:
    return exp(
        lgamma(count + 1)
        - lgamma(below + 1)
        - lgamma(count - below + 1)
        + below * log(q)
        + (count - below) * log(1 - q)
    )
