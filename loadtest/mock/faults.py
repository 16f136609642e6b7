"""Faults injected into streams, and how a request names one: the header `X-Mock-Fault` or the body's `user`, each
holding a kind (`cut`) or JSON (`{"kind": "cut", "after": 3, "rst": true}`)."""

from __future__ import annotations

from enum import StrEnum

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from loadtest.scenario.distributions import StrictModel


class FaultKind(StrEnum):
    """Those of the second block end the stream; those of the third change its content."""

    HTTP_400 = "http_400"
    HTTP_429 = "http_429"
    HTTP_500 = "http_500"
    HTTP_503 = "http_503"
    SILENCE = "silence"  # not even a status comes

    CUT = "cut"  # the connection ends without the last HTTP chunk, within an event
    ERROR_EVENT = "error_event"  # an error in band, then [DONE]
    STALL = "stall"  # silence for `seconds`, or for ever

    NO_DONE = "no_done"
    NO_FINISH = "no_finish"
    NO_USAGE = "no_usage"
    TWO_FINISHES = "two_finishes"
    WRONG_USAGE = "wrong_usage"
    AFTER_DONE = "after_done"  # a token behind [DONE]
    OUT_OF_ORDER = "out_of_order"  # two neighbours change places
    CROSS_TALK = "cross_talk"  # one event has another stream's id
    WRONG_TOKEN = "wrong_token"  # noqa: S105 - a generated token, no secret
    GARBAGE_JSON = "garbage_json"  # half a document as a whole event
    BAD_EVENT = "bad_event"  # JSON, but no chunk
    HALF_CHARACTER = "half_character"  # each half of a UTF-8 character in an event of its own
    SPLIT_CHARACTER = (
        "split_character"  # complete, but written in two halves with a pause between: no fault of the server
    )
    LEAK = "leak"  # the client leaves and its work goes on


class Fault(StrictModel):
    """Each kind uses only its own fields."""

    kind: FaultKind
    after: NonNegativeInt = 3
    """Events with tokens before the fault."""
    seconds: NonNegativeFloat | None = None
    """Duration of a stall; None: for ever."""
    byte: NonNegativeInt = 40
    """Position of a cut in its event."""
    rst: bool = False
    """Whether a cut is an RST instead of a FIN."""
    retry_after_s: PositiveInt = 1
    """Retry-After of a 429 or 503."""


_FAULT = TypeAdapter(Fault)


def parse_fault(text: str) -> Fault:
    """The fault that a request names. Raises ValueError with the fix."""
    try:
        if text.lstrip().startswith("{"):
            return _FAULT.validate_json(text)
        return Fault(kind=FaultKind(text.strip()))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "fault"
        raise ValueError(f"{place}: {first['msg']}") from error
    except ValueError as error:
        raise ValueError(f"{text!r} is not a fault; one of {', '.join(FaultKind)}") from error
