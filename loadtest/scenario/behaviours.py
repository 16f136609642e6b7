"""How clients behave that do not simply read to the end: they leave, read slowly, stop for a while, or come back.

Each has a share of all streams of its workload; the rest are plain readers. Whatever such a client does to its own
times is left out of the distributions (`counts_*`), so that they tell about the server.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loadtest.scenario.distributions import Constant, Distribution, Uniform

__all__ = ["Behaviour", "Cancel", "Resume", "Slow", "Stall"]


class _Behaviour(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0, le=1, description="Of the streams of the workload.")


class Cancel(_Behaviour):
    """Closes the connection before the answer is complete. Exactly one of the three says when."""

    kind: Literal["cancel"]
    before_first_token: bool = Field(False, description="Within 20 ms after sending.")
    after_tokens: Distribution | None = Field(None, description="After so many events with content.")
    after_s: Distribution | None = Field(None, description="So long after sending.")

    @model_validator(mode="after")
    def _check_when(self) -> Cancel:
        if sum((self.before_first_token, self.after_tokens is not None, self.after_s is not None)) != 1:
            raise ValueError("say when: exactly one of before_first_token: true, after_tokens or after_s")
        return self

    @property
    def cancel_after_s(self) -> Distribution | None:
        """Seconds after sending, if it goes by the clock."""
        # Not at once: the server should see the request before the client is gone.
        return Uniform(kind="uniform", min=0.0, max=0.02) if self.before_first_token else self.after_s


class Slow(_Behaviour):
    """Takes no more than so many bytes a second from the socket; the server feels the rest as back pressure."""

    kind: Literal["slow"]
    bytes_per_s: float = Field(ge=16)


class Stall(_Behaviour):
    """Reads `after_events` events, then nothing for `pause_s`, then the rest.

    A server may end a stream that nobody reads: an ending after the pause is planned, not an error."""

    kind: Literal["stall"]
    after_events: Distribution = Constant(value=5)
    pause_s: Distribution


class Resume(_Behaviour):
    """Asks for a resumable stream, drops the connection after every `after_events` events, `times` times, and comes
    back by `GET /v1/streams/{id}` with `Last-Event-ID` (Sluice; other servers answer 404)."""

    kind: Literal["resume"]
    after_events: Distribution = Constant(value=5)
    times: int = Field(1, ge=1, le=100)
    away_s: Distribution = Constant(value=0)
    grace_s: float = Field(30.0, gt=0, description="What X-Stream-Resumable asks for.")


Behaviour = Annotated[Cancel | Slow | Stall | Resume, Field(discriminator="kind")]
