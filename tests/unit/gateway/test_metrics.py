from __future__ import annotations

import math

import pytest
from annotated_types import Le
from prometheus_client import CollectorRegistry

from gateway.domain import Cause
from gateway.metrics import Metrics, add_queued_requests
from gateway.settings_sections import Admission, Section, Streams


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics("0.1.0", registry)


def test_every_event_has_its_metric(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The names are a contract: dashboards and autoscalers use them."""
    metrics.waited(2.0)
    metrics.rejected("queue_full")
    metrics.overhead(0.25)
    metrics.first_token(0.5)
    metrics.token_gap(0.125)
    metrics.merged(3)
    metrics.ended(Cause.CANCELLED, 7)
    metrics.used("anna", Cause.CANCELLED, 11, 7)
    metrics.set_tenant_requests(lambda: {"bert": 3})
    metrics.resumed("ok")
    metrics.recovered("continued", 5)
    metrics.restarted()
    metrics.served("/v1/completions", "cancelled", 4.0)
    metrics.loop_lag(0.5)
    expected = {
        ("sluice_queue_wait_seconds_sum", ()): 2.0,
        ("sluice_rejections_total", (("reason", "queue_full"),)): 1,
        ("sluice_overhead_seconds_sum", ()): 0.25,
        ("sluice_time_to_first_token_seconds_sum", ()): 0.5,
        ("sluice_inter_token_latency_seconds_sum", ()): 0.125,
        ("sluice_merged_deltas_total", ()): 3,
        ("sluice_ended_total", (("cause", "cancelled"),)): 1,
        ("sluice_wasted_tokens_total", (("cause", "cancelled"),)): 7,
        ("sluice_tenant_requests_total", (("cause", "cancelled"), ("tenant", "anna"))): 1,
        ("sluice_tenant_tokens_total", (("kind", "prompt"), ("tenant", "anna"))): 11,
        ("sluice_tenant_tokens_total", (("kind", "completion"), ("tenant", "anna"))): 7,
        ("sluice_tenant_requests_in_flight", (("tenant", "bert"),)): 3,
        ("sluice_stream_resumes_total", (("result", "ok"),)): 1,
        ("sluice_streams_recovered_total", (("result", "continued"),)): 5,
        ("sluice_streams_recovered_total", (("result", "failed"),)): 0,
        ("sluice_engine_restarts_total", ()): 1,
        ("sluice_requests_total", (("endpoint", "/v1/completions"), ("outcome", "cancelled"))): 1,
        ("sluice_request_duration_seconds_sum", (("endpoint", "/v1/completions"),)): 4.0,
        ("sluice_loop_lag_seconds_sum", ()): 0.5,
        ("sluice_build_info", (("version", "0.1.0"),)): 1,
    }

    assert {key: registry.get_sample_value(key[0], dict(key[1])) for key in expected} == expected


@pytest.mark.parametrize("cause", list(Cause))
@pytest.mark.parametrize("name", ["sluice_ended_total", "sluice_wasted_tokens_total"])
def test_a_cause_that_has_not_happened_yet_is_a_zero(
    registry: CollectorRegistry, metrics: Metrics, name: str, cause: Cause
) -> None:
    """A rate over a series that does not exist yet is a gap in the dashboard, and its first event is lost."""
    assert registry.get_sample_value(name, {"cause": cause.value}) == 0


def test_tenants_beyond_the_limit_are_counted_together(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Series stay for ever, and an operator may hand out as many keys as he likes."""
    for number in range(203):
        metrics.used(f"t{number}", Cause.COMPLETED, 10, 1)
    metrics.set_tenant_requests(lambda: {"t0": 1, "t201": 2, "t202": 3, "new": 4})

    def tokens(tenant: str) -> float | None:
        return registry.get_sample_value("sluice_tenant_tokens_total", {"tenant": tenant, "kind": "prompt"})

    def in_flight(tenant: str) -> float | None:
        return registry.get_sample_value("sluice_tenant_requests_in_flight", {"tenant": tenant})

    assert (tokens("t0"), tokens("t199"), tokens("t200"), tokens("(others)")) == (10, 10, None, 30)
    assert (in_flight("t0"), in_flight("t201"), in_flight("(others)")) == (1, None, 9)


def test_gauges_are_read_at_every_scrape(metrics: Metrics, registry: CollectorRegistry) -> None:
    numbers = {"active": 1, "waiting": 2}
    metrics.add_gauge("streams_active", "Active.", lambda: numbers["active"])
    metrics.add_gauge("requests_waiting", "Waiting.", lambda: numbers["waiting"])
    numbers["active"] = 5

    assert registry.get_sample_value("sluice_streams_active") == 5
    assert registry.get_sample_value("sluice_requests_waiting") == 2


def _limit(section: type[Section], name: str) -> float:
    """The most that a setting may be."""
    (bound,) = [one.le for one in section.model_fields[name].metadata if isinstance(one, Le)]
    return float(bound)  # type: ignore[arg-type]


def test_histograms_reach_past_the_longest_limit_that_settings_allow(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """A quantile above the last bound would be reported as that bound."""
    longest_s = max(_limit(Streams, "max_timeout_s"), _limit(Admission, "queue_timeout_s"))
    usual_s = Streams().max_timeout_s
    metrics.served("/v1/completions", "completed", 1.0)
    bounds: dict[str, list[float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bounds.setdefault(family.name, []).append(float(sample.labels["le"]))

    assert set(bounds) == {
        f"sluice_{name}_seconds"
        for name in (
            "time_to_first_token", "inter_token_latency", "queue_wait", "overhead", "loop_lag", "request_duration",
        )
    }  # fmt: skip
    for name, found in bounds.items():
        *finite, last = found
        assert last == math.inf
        assert finite[-1] > longest_s, name
        assert any(usual_s < bound < 2 * usual_s for bound in finite), "no bound just past the default"
        assert len(found) <= 32, "each is a series"
        assert finite == sorted(set(finite))


PAGE = """\
# HELP sluice_requests_waiting Requests at the gate.
# TYPE sluice_requests_waiting gauge
sluice_requests_waiting {queue}
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {first}
vllm:num_requests_waiting{{engine="1",model_name="m"}} {second}
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} {first}
vllm:num_requests_waiting_by_reason{{engine="1",model_name="m",reason="capacity"}} {second}
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="deferred"}} 0.0
vllm:num_requests_waiting_by_reason{{engine="1",model_name="m",reason="deferred"}} 0.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{{engine="0",model_name="m"}} 4.0
"""
HELP = "Number of requests waiting to be processed."


@pytest.mark.parametrize(("queue", "first", "second"), [(0, 0, 1), (1, 1, 1), (36, 18, 19), (37, 19, 19)])
def test_vllms_gauges_include_the_requests_in_our_queue(queue: int, first: int, second: int) -> None:
    """The second engine has one of its own; the sum over engines is what waits here and there."""
    page = PAGE.format(queue=float(queue), first=0.0, second=1.0)
    wanted = PAGE.format(queue=float(queue), first=float(first), second=float(second))

    assert add_queued_requests(page.encode()).decode() == wanted.replace(
        HELP, f"{HELP} Includes the requests in Sluice's queue."
    )


def test_without_vllms_gauges_there_is_nothing_to_add_to() -> None:
    """While the engine starts, or with its statistics off."""
    page = b"sluice_requests_waiting 3.0\n"

    assert add_queued_requests(page) == page


def test_the_exposition_is_prometheus_text(metrics: Metrics) -> None:
    assert b"# TYPE sluice_ended_total counter" in metrics.render()
    assert metrics.content_type.startswith("text/plain")
