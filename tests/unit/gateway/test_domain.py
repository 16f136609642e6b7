from __future__ import annotations

import dataclasses
import inspect

import pytest

from gateway import domain
from gateway.domain import Cause, Delta
from tests.support.instrumentation import Recorder, some_stats

NOUNS = [kind for _, kind in inspect.getmembers(domain, dataclasses.is_dataclass) if kind is not domain.RequestStats]


@pytest.mark.parametrize("noun", NOUNS)
def test_nouns_are_frozen_and_slotted(noun: type) -> None:
    """They cross packages and tasks; none may change one that another uses."""
    assert noun.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__dict__" not in dir(noun)


def test_a_nouns_fields_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Delta("a", 1).text = "b"  # type: ignore[misc]


def test_the_causes_are_those_of_the_contract() -> None:
    """They are metric labels and error codes: dashboards and clients use their names."""
    assert [cause.value for cause in Cause] == [
        "completed",
        "rejected",
        "refused_unready",
        "refused_draining",
        "disconnected",
        "cancelled",
        "deadline_exceeded",
        "engine_failed",
        "server_draining",
        "client_stalled",
        "overloaded",
        "internal_error",
    ]


def test_request_stats_measure_the_gaps_between_tokens_not_the_wait_for_the_first() -> None:
    instrumentation = Recorder()
    stats = some_stats(instrumentation)
    for tokens, now_s in ((1, 5.0), (2, 5.5), (0, 9.0), (1, 6.5)):
        stats.add_tokens(tokens, now_s)

    assert (stats.completion_tokens, stats.first_token_s, stats.last_token_s) == (4, 5.0, 6.5)
    assert instrumentation.gaps == [0.5, 1.0]


def test_tokens_that_came_all_at_once_have_no_latency() -> None:
    instrumentation = Recorder()
    stats = some_stats(instrumentation)
    stats.add_tokens(50, None)

    assert (stats.completion_tokens, stats.first_token_s, instrumentation.gaps) == (50, None, [])


def test_the_first_cause_stays_and_ends_the_request_once() -> None:
    ends: list[Cause | None] = []
    stats = some_stats()
    stats.on_end = lambda ended: ends.append(ended.cause)
    stats.end(Cause.CANCELLED)
    stats.end(Cause.COMPLETED)

    assert (stats.cause, ends) == (Cause.CANCELLED, [Cause.CANCELLED])
