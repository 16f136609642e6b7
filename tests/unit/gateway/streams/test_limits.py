from __future__ import annotations

import pytest

from gateway.domain import RequestOptions
from gateway.streams.limits import Limits

LIMITS = Limits(max_timeout_s=60, max_grace_s=30, retention_s=1, max_bytes=1, max_total_bytes=1)


@pytest.mark.parametrize(("asked_s", "given_s"), [(None, 60), (10, 10), (600, 60)])
def test_a_timeout_is_at_most_the_limit_and_by_default_the_limit(asked_s: float | None, given_s: float) -> None:
    assert LIMITS.timeout_s(RequestOptions(timeout_s=asked_s, grace_s=None)) == given_s


@pytest.mark.parametrize(("asked_s", "given_s"), [(None, None), (0, 0), (10, 10), (600, 30)])
def test_a_grace_is_at_most_the_limit_and_by_default_none(asked_s: float | None, given_s: float | None) -> None:
    assert LIMITS.grace_s(RequestOptions(timeout_s=None, grace_s=asked_s)) == given_s
