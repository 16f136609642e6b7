"""Log-linear histograms of times: an error of at most 0.8 % at any quantile, whatever the length of the run.

A value is an integer of microseconds. Below 128 us every value has a bucket of its own; above, each power of two is
divided into 64 buckets (the idea of HdrHistogram, with seven significant bits). Merging adds counts, so that workers,
seconds and stages can be summed in any order without loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil

_BITS = 7
_HALF = 1 << (_BITS - 1)


class Histogram:
    """Counts by bucket, with the exact sum and maximum. All values in microseconds."""

    __slots__ = ("buckets", "count", "largest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.largest = 0

    def add(self, value: int, times: int = 1) -> None:
        """A negative value (clocks of two threads) counts as 0."""
        value = max(value, 0)
        shift = value.bit_length() - _BITS
        bucket = value if shift <= 0 else (shift << (_BITS - 1)) + (value >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + times
        self.count += times
        self.total += value * times
        self.largest = max(self.largest, value)

    def merge(self, other: Histogram) -> None:
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def quantile(self, q: float) -> float | None:
        """The value, in microseconds, that a share `q` (0 to 1) of the values does not exceed.

        It is the middle of a bucket, never above the largest value; None without values."""
        if not self.count:
            return None
        rank = max(1, ceil(q * self.count - 1e-9))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(bucket_middle(bucket), float(self.largest))
        return float(self.largest)

    def quantile_ms(self, q: float) -> float | None:
        """`quantile` in milliseconds."""
        value = self.quantile(q)
        return None if value is None else value / 1000

    @property
    def mean(self) -> float | None:
        """The exact mean in microseconds; None without values."""
        return self.total / self.count if self.count else None

    def to_dict(self) -> dict[str, object]:
        """As JSON: `{"total": us, "max": us, "buckets": [[bucket, count], ...]}`."""
        return {"total": self.total, "max": self.largest, "buckets": sorted(map(list, self.buckets.items()))}

    @classmethod
    def from_dict(cls, document: Mapping[str, object]) -> Histogram:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for another document."""
        histogram = cls()
        pairs: Iterable[tuple[int, int]] = document["buckets"]  # type: ignore[assignment]
        histogram.buckets = {int(bucket): int(count) for bucket, count in pairs}
        histogram.count = sum(histogram.buckets.values())
        histogram.total = int(document["total"])  # type: ignore[call-overload]
        histogram.largest = int(document["max"])  # type: ignore[call-overload]
        return histogram


def bucket_middle(bucket: int) -> float:
    """In microseconds."""
    if bucket < 2 * _HALF:
        return float(bucket)
    shift = (bucket >> (_BITS - 1)) - 1
    low = ((bucket & (_HALF - 1)) + _HALF) << shift
    return low + ((1 << shift) - 1) / 2
