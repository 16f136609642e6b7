"""Sections of the settings that stand by themselves, and what a setting may look like."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+|null|\*")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|[0-9a-f:]+|\*")


def _origin(text: str) -> str:
    # What a browser sends as its `Origin` has no path, not even a slash at the end.
    if not _ORIGIN.fullmatch(text):
        raise PydanticCustomError("origin", "an origin is `scheme://host` or `scheme://host:port`, no more")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise PydanticCustomError("host", "an allowed host is a name or an address, without scheme and port")
    return text


Origin = Annotated[str, AfterValidator(_origin)]
Host = Annotated[str, AfterValidator(_host)]


class Section(BaseModel):
    """Some settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Synthetic(Section):
    """An engine without a model, for tests: how fast it pretends to be, and when it fails. Steps count from 1, anew
    in every engine process, and only where there is work."""

    enabled: bool = Field(False, description="Invent the tokens instead of running the model.")
    step_ms: float = Field(10.0, ge=0, le=600_000, description="Milliseconds that every step takes.")
    sequence_us: float = Field(
        0.0, ge=0, le=1_000_000, description="Microseconds that each running sequence adds to a step."
    )
    prefill_us: float = Field(
        0.0, ge=0, le=1_000_000, description="Microseconds that each prompt token in a step adds."
    )
    die_at_step: int | None = Field(None, ge=1, description="The engine process ends at once in this step.")
    hang_at_step: int | None = Field(None, ge=1, description="This step never returns.")
    slow_at_step: int | None = Field(
        None, ge=1, description="From this step on, steps take `slow_factor` times as long."
    )
    slow_factor: float = Field(10.0, ge=1, le=1_000_000, description="How many times as long slow steps take.")
    busy: bool = Field(False, description="Compute through the time of a step instead of sleeping.")
    poison_token: int | None = Field(
        None, ge=0, description="The engine process ends at once when it computes a prompt that begins with this token."
    )
    poison_length: int = Field(
        0, ge=0, description="The same only from this length on, of prompt and generated tokens together."
    )
    control_file: Path | None = Field(
        None, description="JSON file with settings of this section that change a running engine; read when it changes."
    )


class Media(Section):
    """Images, audio and video that clients send to models which take them."""

    max_bytes: int = Field(32 * 2**20, ge=1024, description="Largest image, audio or video, as it is sent or fetched.")
    max_decoded_bytes: int = Field(
        2**30, ge=2**20, description="What the images, audio and videos of one request may take once decoded."
    )
    timeout_s: float = Field(30.0, gt=0, description="How long fetching and decoding one may take.")
    private_addresses: bool = Field(
        False, description="Fetch from private addresses, too, where a name of engine.allowed_media_domains has one."
    )


class Log(Section):
    """Log lines."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level shown.")
    as_json: bool = Field(False, alias="json", description="One JSON object a line.")
    requests: bool = Field(True, description="A line for every request, at its end.")
    quiet_paths: tuple[str, ...] = Field((), description="Paths whose requests leave no line.")


__all__ = ["Host", "Log", "Media", "Origin", "Section", "Synthetic"]
