"""The account of a request: reported once, with its first cause, at the end of the exchange or of its stream."""

from __future__ import annotations

import logging

import pytest

from gateway.domain import Cause, RequestStats
from gateway.transports.common import accounting
from gateway.transports.common.accounting import DETACHED
from tests.support.instrumentation import Recorder, a_caller


def opened(recorder: Recorder, owner: str | None = None, *, is_resumable: bool = False) -> RequestStats:
    """The statistics of a request that has generated five tokens from eleven."""
    stats = accounting.new_stats(a_caller(owner), recorder)
    stats.uses_engine = True
    stats.is_resumable = is_resumable
    stats.prompt_tokens = 11
    stats.add_tokens(5, None)
    return stats


def close(stats: RequestStats, *, is_delivered: bool = True, failure: Cause | None = None) -> None:
    """The end of the exchange."""
    accounting.close(
        stats,
        1001.0,
        path="/v1/completions",
        status=200,
        is_delivered=is_delivered,
        is_error=False,
        failure=failure,
        log_level=logging.INFO,
    )


@pytest.mark.parametrize("cause", list(Cause))
def test_tokens_of_a_request_that_did_not_complete_are_wasted(cause: Cause) -> None:
    recorder = Recorder()
    stats = opened(recorder)
    stats.end(cause)
    close(stats)

    assert recorder.endings == [(cause, 0 if cause is Cause.COMPLETED else 5)]
    assert recorder.labels == [("other", cause.value)]


@pytest.mark.parametrize("owner", ["anna", None])
def test_usage_is_reported_for_requests_with_an_api_key(owner: str | None) -> None:
    recorder = Recorder()
    stats = opened(recorder, owner)
    stats.end(Cause.CANCELLED)
    close(stats)

    assert recorder.uses == ([] if owner is None else [("anna", Cause.CANCELLED, 11, 5)])


@pytest.mark.parametrize(("is_delivered", "cause"), [(True, Cause.COMPLETED), (False, Cause.DISCONNECTED)])
def test_without_a_cause_delivery_decides(is_delivered: bool, cause: Cause) -> None:
    recorder = Recorder()
    close(opened(recorder), is_delivered=is_delivered)

    assert recorder.endings == [(cause, 0 if is_delivered else 5)]


def test_a_resumable_request_is_reported_once_by_the_end_of_its_stream() -> None:
    recorder = Recorder()
    stats = opened(recorder, is_resumable=True)
    close(stats, is_delivered=False)

    assert (recorder.endings, recorder.labels) == ([], [("other", DETACHED)])

    stats.end(Cause.CANCELLED)
    stats.end(Cause.COMPLETED)

    assert recorder.endings == [(Cause.CANCELLED, 5)]


def test_a_resumable_request_that_ended_first_is_not_reported_again_by_its_exchange() -> None:
    recorder = Recorder()
    stats = opened(recorder, is_resumable=True)
    stats.end(Cause.COMPLETED)
    close(stats)

    assert (recorder.endings, recorder.labels) == ([(Cause.COMPLETED, 0)], [("other", "completed")])


def test_an_exchange_that_failed_names_its_own_failure_while_its_stream_goes_on() -> None:
    recorder = Recorder()
    close(opened(recorder, is_resumable=True), is_delivered=False, failure=Cause.REJECTED)

    assert (recorder.endings, recorder.labels) == ([], [("other", "rejected")])


def test_requests_without_engine_work_have_no_ending() -> None:
    recorder = Recorder()
    stats = opened(recorder)
    stats.uses_engine = False
    close(stats)
    close(stats, is_delivered=False)

    assert (recorder.endings, recorder.labels) == ([], [("other", "ok"), ("other", "error")])
