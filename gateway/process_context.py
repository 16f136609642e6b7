"""The parts of the app that differ between a process that serves alone and one of several workers on one engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

from gateway.admission.gate import AdmissionControl, Gate
from gateway.engine.base import Engine, RecoveryReport
from gateway.engine.shared import EngineHost

# A client needs only the id to read or cancel a stream, so an id must not be guessable: 128 random bits.
_ID_BYTES = 16


class ProcessContext(Protocol):
    """The app is composed with one of these."""

    @property
    def engine_host(self) -> EngineHost | None:
        """The process that runs the engine; None: this process runs it."""

    def max_restarts(self, configured: int) -> int | None:
        """How many engine restarts within the window this process allows; None: the engine host counts them."""

    @property
    def make_gate(self) -> Callable[..., AdmissionControl]:
        """Makes the gate of this process's requests from the arguments of `Gate`; called once."""

    def new_id(self) -> str:
        """A fresh stream id that cannot be guessed, without the endpoint's prefix."""

    def share_of(self, total: int) -> int:
        """This process's part of an amount that all processes may use together."""

    def wrap(
        self,
        app: Any,
        *,
        has_request: Callable[[str], bool],
        render_metrics: Callable[[], bytes],
        stall_timeout_s: float,
    ) -> Any:
        """The ASGI app to serve instead of `app`; called once. `has_request`: whether the engine's own app runs a
        request of that id in this process; `render_metrics`: the metrics of this process."""

    async def collect_metrics(self, render_metrics: Callable[[], bytes]) -> bytes:
        """The metrics of all processes as one page. Raises Overloaded if one of them does not answer."""

    def on_serving(self, engine: Engine, *, has_chat: bool, recovery: RecoveryReport) -> None:
        """This process serves on `engine`, for the first time or after a restart."""


class SingleProcess:
    """The `ProcessContext` of a process that serves alone."""

    engine_host: EngineHost | None = None
    make_gate = staticmethod(Gate)

    def max_restarts(self, configured: int) -> int | None:
        return configured

    def new_id(self) -> str:
        return secrets.token_hex(_ID_BYTES)

    def share_of(self, total: int) -> int:
        return total

    def wrap(self, app: Any, **_: Any) -> Any:
        return app

    async def collect_metrics(self, render_metrics: Callable[[], bytes]) -> bytes:
        return render_metrics()

    def on_serving(self, engine: Engine, *, has_chat: bool, recovery: RecoveryReport) -> None:
        """Does nothing: no other process depends on it."""
