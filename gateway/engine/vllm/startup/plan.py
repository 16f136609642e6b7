"""Which engine to start, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.engine.bounded_json import BodyLimits


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """`engine` holds vLLM's arguments by name, `flags` more of its command line; these win.

    `is_demo`: the demo model, which starts the fast way on CPUs (one process, one thread, no compilation).
    `synthetic`: the fields of `StepTiming` by name, for an engine without a model. `hang_timeout_s` and
    `long_step_timeout_s`: how long the engine may leave a probe unanswered while it does not compute, and while it
    does. `workers`: how many processes of ours use the engine. `grammars` and `media`: limits by name. `source` gives
    the place where a key of `engine` was set, for messages; `on_stage` is called with each stage of the start.
    """

    engine: Mapping[str, Any]
    flags: Sequence[str] = ()
    is_demo: bool = False
    synthetic: Mapping[str, Any] | None = None
    trust_client_fields: bool = False
    body_limits: BodyLimits = field(default_factory=BodyLimits)
    prepare_timeout_s: float = 60.0
    hang_timeout_s: float = 60.0
    long_step_timeout_s: float = 600.0
    workers: int = 1
    grammars: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    log_level: str = "info"
    log_json: bool = False
    source: Callable[[str], str] = field(default=lambda _: "command line")
    on_stage: Callable[[str], None] = field(default=lambda _: None)

    def report_starting(self) -> None:
        """Report the stage that takes longest."""
        weights = "loading the weights" if self.synthetic is None else "leaving out the model: its tokens are invented"
        self.on_stage(f"starting the engine process and {weights}")
