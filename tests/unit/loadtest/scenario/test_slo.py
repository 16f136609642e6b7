from __future__ import annotations

import pytest

from loadtest.scenario.slo import PRESETS, Slo


def test_flat_limits_become_a_list() -> None:
    slo = Slo.model_validate(
        {"ttft_p99_ms": 2000, "itl_p50_ms": 30, "per_request": {"tpot_ms": 50}, "goodput_min": 0.9}
    )

    assert [(one.name, one.metric, one.quantile, one.limit) for one in slo.limits] == [
        ("ttft_p99_ms", "ttft_ms", "p99", 2000),
        ("itl_p50_ms", "itl_ms", "p50", 30),
    ]
    assert (slo.per_request, slo.goodput_min, slo.error_rate_max) == ({"tpot_ms": 50}, 0.9, 0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_explicit_limits_override_a_preset(preset: str) -> None:
    ttft, tpot = PRESETS[preset]
    slo = Slo.model_validate({"preset": preset, "tpot_p99_ms": 7})

    assert {one.name: one.limit for one in slo.limits} == {"ttft_p99_ms": ttft, "tpot_p99_ms": 7}
    assert slo.per_request == {"ttft_ms": ttft, "tpot_ms": tpot}
