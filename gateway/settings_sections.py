"""The sections of the settings. The descriptions are the source of docs/settings.md."""

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
    """Base of the sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(Section):
    """TLS on the port or socket that serves requests. The files are read again when they change."""

    cert_file: Path = Field(
        description="PEM file with the certificate, followed by the intermediate certificates of its authority."
    )
    key_file: Path | None = Field(
        None, description="PEM file with the private key, without a passphrase. None: the key is in `cert_file`."
    )
    client_ca_file: Path | None = Field(
        None, description="PEM file with the authorities that sign client certificates (mutual TLS)."
    )
    client_certificates: Literal["none", "optional", "required"] | None = Field(
        None,
        description="Whether clients must present a certificate. None: `required` if `client_ca_file` is set, else "
        "`none`.",
    )
    min_version: Literal["1.2", "1.3"] = Field("1.2", description="Oldest TLS version that is accepted.")
    ciphers: str | None = Field(
        None, description="Cipher list for TLS 1.2 in OpenSSL's format. None: OpenSSL's default."
    )


class Server(Section):
    """The server process, its sockets, and the limits on connections and request bodies."""

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` listens on all of them.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; `0` picks a free one.")
    uds: Path | None = Field(
        None,
        description="Unix socket to listen on instead of host and port. It is removed at exit, and replaced at the "
        "start if no process listens on it.",
    )
    uds_access: Literal["owner", "group", "everyone"] = Field(
        "group", description="Permissions of the Unix socket's file: who may connect to it."
    )
    tls: Tls | None = Field(None, description="TLS on the port or socket: certificate, key and client certificates.")
    management_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Separate port for `/metrics`, `/docs` and `/openapi.json`; the main port then answers 404 for "
        "them. Health paths are on both. Plain HTTP, also with `server.tls`.",
    )
    management_host: str | None = Field(None, description="Address of the management port. None: `server.host`.")
    workers: int = Field(1, ge=1, le=64, description="Gateway processes that share one engine.")
    drain_timeout_s: float = Field(30.0, ge=0, description="How long running requests may continue after SIGTERM.")
    api_keys_file: Path | None = Field(
        None,
        description="File of `name:sha256` lines, one for each API key (`sluice key new NAME` makes one); it is read "
        "again when it changes. None: requests need no key.",
    )
    protect_metrics: bool = Field(False, description="Require an API key for `/metrics` too.")
    operator_endpoints: bool = Field(
        False,
        description="Without API keys: open vLLM's operator endpoints (sleep, scaling, profiling, LoRA loading) to "
        "every client. With keys, they take an operator's key.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Origins, such as `https://app.example.com`, whose pages may call this server from a browser; `*` "
        "allows all.",
    )
    allowed_hosts: tuple[Host, ...] = Field(
        (),
        description="`Host` names, without ports, under which clients without a key may call this server; "
        "`*.example.com` allows all names below, `*` any. Empty: on a loopback address only names of this machine, "
        "otherwise any.",
    )
    trust_client_fields: bool = Field(
        False, description="Let clients set priority, data-parallel rank, KV transfer, cache salt and session id."
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body.")
    max_total_body_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Bodies over 64 KiB held at once, over all unanswered requests and all workers. Beyond it, the "
        "bodies that have been arriving for longest get 503.",
    )
    body_timeout_s: float = Field(
        60.0, gt=0, description="Time from the end of the headers to the end of the body (408)."
    )
    min_body_bytes_per_s: int = Field(
        1024, ge=0, description="Lowest rate, over ten seconds, at which a body may arrive (408); `0`: no limit."
    )
    max_json_values: int = Field(
        100_000, ge=1000, description="Most values in a JSON body; a long list of numbers (token ids) counts as one."
    )
    max_json_numbers: int = Field(
        2_000_000, ge=1000, description="Most numbers, such as token ids, in all lists of a JSON body together."
    )
    max_json_items: int = Field(
        4096,
        ge=16,
        description="Most items of one JSON list or object (messages, tools, prompts); lists of numbers are exempt.",
    )
    max_json_depth: int = Field(100, ge=8, le=500, description="Deepest nesting of a JSON body.")
    max_stop_strings: int = Field(256, ge=4, description="Most strings in `stop`, and in `bad_words`, of a request.")
    prepare_timeout_s: float = Field(
        60.0, gt=0, description="Longest time for validating a body, and for rendering its prompt."
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Largest request line and headers together.")
    max_headers: int = Field(256, ge=16, description="Most header lines of a request.")
    header_timeout_s: float = Field(
        10.0, gt=0, description="Time within which the headers of a request must be complete."
    )
    idle_timeout_s: float = Field(
        75.0,
        gt=0,
        description="How long a connection without a request stays open. A proxy in front must close its idle "
        "connections earlier.",
    )
    max_connection_age_s: float = Field(
        300.0,
        ge=0,
        description="Age after which the next answer on a connection has `Connection: close`, varied by up to a "
        "tenth, so that clients reconnect and reach newer replicas; `0`: never.",
    )
    middleware: tuple[str, ...] = Field(
        (),
        description="ASGI middleware to add, as import paths (`package.module.Name`). It sees every path, after the "
        "check of API keys; the last is the outermost.",
    )


class Admission(Section):
    """How many requests run, and how many wait for a slot."""

    max_concurrent: int = Field(
        256,
        ge=1,
        description="Most sequences in the engine at once; a request with `n` choices or prompts counts as `n`.",
    )
    max_waiting: int = Field(512, ge=0, description="Most requests in the queue for a slot.")
    queue_timeout_s: float = Field(60.0, gt=0, le=86_400, description="Longest time in the queue.")


class Grammars(Section):
    """Limits on the grammar (JSON schema, regular expression, EBNF, choices, structural tag) of a request. It is
    compiled in a separate process before the request waits for a slot."""

    timeout_s: float = Field(
        4.0,
        gt=0,
        le=600,
        description="CPU time of one compilation, and 1.75 times as long by the clock; beyond it the request gets 400.",
    )
    max_bytes: int = Field(512 * 2**10, ge=1024, description="Longest schema, expression or grammar.")
    max_properties: int = Field(
        2000, ge=1, description="Most properties and definitions in a JSON schema, at all levels together."
    )
    max_choices: int = Field(
        5000, ge=1, description="Most alternatives: choices, `enum` values, the `|` of an expression."
    )
    max_nesting: int = Field(
        64, ge=1, le=64, description="Deepest nesting of a JSON schema; vLLM allows no more than 64."
    )
    max_memory_bytes: int = Field(256 * 2**20, ge=2**20, description="Most memory of one compilation.")
    processes: int = Field(8, ge=1, le=256, description="Most compilations at once, over all workers.")


class Streams(Section):
    """Time limits of streams, and how much of a resumable stream is kept."""

    keepalive_s: float = Field(
        15.0, gt=0, description="Seconds of silence, queue and prefill included, after which a comment is sent."
    )
    stall_timeout_s: float = Field(
        30.0, gt=0, description="How long one send may wait for a client that does not read."
    )
    max_timeout_s: float = Field(
        3600.0,
        gt=0,
        le=86_400,
        description="Longest deadline (`X-Request-Timeout`) of a request, and the deadline of requests without one.",
    )
    max_grace_s: float = Field(
        600.0,
        ge=0,
        description="Longest time that a resumable stream (`X-Stream-Resumable`) continues without a reader.",
    )
    retention_s: float = Field(120.0, ge=0, description="How long a finished resumable stream stays readable.")
    max_bytes: int = Field(
        2**20, ge=4096, description="Events that one resumable stream keeps; the oldest are dropped first."
    )
    max_total_bytes: int = Field(
        256 * 2**20,
        ge=4096,
        description="Events that all resumable streams keep; the oldest finished streams are dropped first. Workers "
        "divide it.",
    )


class Supervision(Section):
    """When an engine counts as hung, and how often it is restarted."""

    max_restarts: int = Field(
        3, ge=0, description="Engine restarts within `window_s`; the next death ends the process with exit code 1."
    )
    window_s: float = Field(600.0, gt=0, description="Period over which restarts are counted.")
    hang_timeout_s: float = Field(
        60.0,
        gt=0,
        description="An engine that uses no CPU and leaves a call unanswered for this long is killed and restarted.",
    )
    long_step_timeout_s: float = Field(
        600.0,
        gt=0,
        description="The same for an engine that computes: the longest time that one step, such as a long prefill, may "
        "take.",
    )


class Synthetic(Section):
    """An engine without a model, for load, cost and fault tests: its step times and failures. Steps are counted from 1
    in each engine process, and only while there is work."""

    enabled: bool = Field(False, description="Invent the tokens instead of running the model.")
    step_ms: float = Field(10.0, ge=0, le=600_000, description="Duration of every engine step, in milliseconds.")
    sequence_us: float = Field(
        0.0, ge=0, le=1_000_000, description="Microseconds that each running sequence adds to a step."
    )
    prefill_us: float = Field(
        0.0, ge=0, le=1_000_000, description="Microseconds that each prompt token in a step adds."
    )
    die_at_step: int | None = Field(None, ge=1, description="Step in which the engine process exits.")
    hang_at_step: int | None = Field(None, ge=1, description="Step that never returns.")
    slow_at_step: int | None = Field(
        None, ge=1, description="Step from which on steps take `slow_factor` times as long."
    )
    slow_factor: float = Field(10.0, ge=1, le=1_000_000, description="Factor by which slow steps take longer.")
    busy: bool = Field(False, description="Use CPU for the duration of a step instead of sleeping.")
    poison_token: int | None = Field(
        None, ge=0, description="The engine process exits when it computes a prompt that begins with this token id."
    )
    poison_length: int = Field(
        0, ge=0, description="Prompt and generated tokens together from which on `poison_token` has its effect."
    )
    control_file: Path | None = Field(
        None, description="JSON file with settings of this section; a running engine applies it whenever it changes."
    )


class Media(Section):
    """Limits on the images, audio and video in requests to multimodal models."""

    max_bytes: int = Field(32 * 2**20, ge=1024, description="Largest image, audio or video, as it is sent or fetched.")
    max_decoded_bytes: int = Field(
        2**30, ge=2**20, description="Most memory of the decoded images, audio and video of one request."
    )
    timeout_s: float = Field(30.0, gt=0, description="Longest time for fetching and decoding one item.")
    private_addresses: bool = Field(
        False,
        description="Fetch from private addresses too, where a name in `engine.allowed_media_domains` resolves to one.",
    )


class Log(Section):
    """Log lines on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is shown; `debug` shows vLLM's own log too."
    )
    as_json: bool = Field(False, alias="json", description="One JSON object per line.")
    requests: bool = Field(True, description="One line per request, at its end.")
    quiet_paths: tuple[str, ...] = Field((), description="Paths whose requests leave no line.")
