"""Clients that do not simply read to the end: they leave, read slowly, pause, or resume.

Each behaviour has a share of all streams of its workload; the rest read plainly. Times that such a client itself
distorts are left out of the distributions (`counts_*` of `Record`), so that these describe the server.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from loadtest.scenario.distributions import Constant, Distribution, StrictModel, Uniform


class _Behaviour(StrictModel):
    share: float = Field(gt=0, le=1, description="Of the streams of the workload.")


class Cancel(_Behaviour):
    """Closes the connection before the answer is complete. Exactly one of the three fields defines the moment."""

    kind: Literal["cancel"]
    before_first_token: bool = Field(False, description="Within 20 ms after sending.")
    after_tokens: Distribution | None = Field(None, description="Number of events with content.")
    after_s: Distribution | None = Field(None, description="Seconds after sending.")

    @model_validator(mode="after")
    def _check_when(self) -> Cancel:
        if sum((self.before_first_token, self.after_tokens is not None, self.after_s is not None)) != 1:
            raise ValueError("set exactly one of before_first_token: true, after_tokens or after_s")
        return self

    @property
    def cancel_after_s(self) -> Distribution | None:
        """Seconds after sending; None if events are counted instead."""
        # Not at once: the server should receive the request before the client is gone.
        return Uniform(kind="uniform", min=0.0, max=0.02) if self.before_first_token else self.after_s


class Slow(_Behaviour):
    """Takes at most `bytes_per_s` from the socket; the rest reaches the server as back pressure."""

    kind: Literal["slow"]
    bytes_per_s: float = Field(ge=16)


class Stall(_Behaviour):
    """Reads `after_events` events, nothing for `pause_s`, then the rest.

    A server may end a stream whose client does not read: an ending after the pause is planned, not an error."""

    kind: Literal["stall"]
    after_events: Distribution = Constant(value=5)
    pause_s: Distribution


class Resume(_Behaviour):
    """Requests a resumable stream, drops the connection after every `after_events` events, `times` times, and resumes
    by `GET /v1/streams/{id}` with `Last-Event-ID` (Sluice; other servers answer 404)."""

    kind: Literal["resume"]
    after_events: Distribution = Constant(value=5)
    times: int = Field(1, ge=1, le=100)
    away_s: Distribution = Constant(value=0)
    grace_s: float = Field(30.0, gt=0, description="The value of X-Stream-Resumable.")


Behaviour = Annotated[Cancel | Slow | Stall | Resume, Field(discriminator="kind")]
