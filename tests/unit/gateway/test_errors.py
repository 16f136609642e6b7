from __future__ import annotations

import inspect
import re

import pytest

from gateway import errors
from gateway.domain import Cause
from gateway.errors import Overloaded, SettingsError, SluiceError, cause_of, status_of

TREE = sorted(
    (kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SluiceError)),
    key=lambda kind: kind.__name__,
)
LEAVES = [kind for kind in TREE if kind is not SluiceError]


@pytest.mark.parametrize("kind", LEAVES)
def test_the_drawn_tree_equals_the_classes(kind: type[SluiceError]) -> None:
    """The drawing is what people read; it must not drift from the classes."""
    drawn = re.search(rf"[-] {kind.__name__} +(.+)", errors.__doc__ or "")
    retry = "yes" if kind.retryable else "no"

    assert drawn is not None, f"{kind.__name__} is not drawn"
    assert drawn[1].split() == [str(kind.status), kind.type, kind.code, retry]


def test_the_drawing_has_every_class_once_under_its_parent_and_no_other() -> None:
    doc = errors.__doc__ or ""
    parents: dict[int, str] = {}
    drawn: list[tuple[str, str]] = []
    for indent, name in re.findall(r"^    ((?:[|`\- ] *)*)(\w+)  +\d{3} ", doc, re.M):
        drawn.append((name, parents.get(len(indent) - 3, "SluiceError")))
        parents[len(indent)] = name

    assert sorted(drawn) == sorted((kind.__name__, kind.__mro__[1].__name__) for kind in LEAVES)
    assert "SettingsError" in doc


@pytest.mark.parametrize("kind", LEAVES)
def test_503_is_for_requests_that_have_cost_nothing(kind: type[SluiceError]) -> None:
    """Proxies send those to another server by themselves."""
    before, after = (status_of(kind.status, submitted=submitted) for submitted in (False, True))

    assert before == kind.status
    assert after == (500 if kind.status == 503 else kind.status)


@pytest.mark.parametrize("kind", LEAVES)
def test_refused_requests_are_not_counted_as_cut_off(kind: type[SluiceError]) -> None:
    before, after = (cause_of(kind("."), submitted=submitted) for submitted in (False, True))

    assert after is kind.cause
    assert before is {"server_draining": Cause.REFUSED_DRAINING, "engine_failed": Cause.REFUSED_UNREADY}.get(
        kind.code, kind.cause
    )


@pytest.mark.parametrize("kind", LEAVES)
def test_every_failure_has_its_body_in_openais_shape(kind: type[SluiceError]) -> None:
    assert kind("Say why.", param="n").body() == {
        "error": {
            "message": "Say why.",
            "type": kind.type,
            "code": kind.code,
            "param": "n",
            "retryable": kind.retryable,
            "resumable": False,
        }
    }


@pytest.mark.parametrize("kind", LEAVES)
def test_nothing_is_answered_with_422(kind: type[SluiceError]) -> None:
    """OpenAI clients expect 400 for what FastAPI would call unprocessable."""
    assert 400 <= kind.status <= 599
    assert kind.status != 422


def test_only_transient_failures_are_retryable() -> None:
    """openai-python retries these on its own; a request that is wrong, or was cancelled, must not come again."""
    assert {kind.code for kind in LEAVES if kind.retryable} == {
        "headers_timeout",
        "body_timeout",
        "client_stalled",
        "overloaded",
        "server_starting",
        "server_draining",
        "engine_failed",
    }


def test_two_failures_never_share_a_code() -> None:
    codes = [kind.code for kind in LEAVES]

    assert len(codes) == len(set(codes))


def test_an_error_keeps_its_message_and_its_retry_after() -> None:
    error = Overloaded("Full.", retry_after_s=9)

    assert (str(error), error.message, error.retry_after_s, error.param) == ("Full.", "Full.", 9, None)


def test_bad_settings_are_not_for_clients() -> None:
    assert not issubclass(SettingsError, SluiceError)
    assert (SettingsError("x").exit_code, SettingsError("x", exit_code=1).exit_code) == (2, 1)
