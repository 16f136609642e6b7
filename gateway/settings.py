"""One frozen tree of settings: flags > environment (`SLUICE_SECTION__KEY`) > YAML file > defaults.

The only reader of the environment. A key that nobody knows is an error that names the key, where it stands and the
nearest right one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from gateway import settings_errors
from gateway.errors import SettingsError
from gateway.settings_errors import PREFIX, Surroundings
from gateway.settings_sections import Host, Log, Media, Origin, Section, Synthetic

_HIDDEN = "********"
# What Kubernetes puts into every pod of a namespace that has a Service named "sluice".
_SERVICE_LINK = re.compile(r"SLUICE_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_SECRET_WORDS = ("token", "secret", "password", "api_key", "credential")


class Tls(Section):
    """Encryption of the port that serves. The files are read again when they change."""

    cert_file: Path = Field(description="PEM file with the certificate, and those between it and its authority.")
    key_file: Path | None = Field(None, description="PEM file with the key, without a passphrase; none: in cert_file.")
    client_ca_file: Path | None = Field(
        None, description="PEM file with the authorities that sign clients' certificates."
    )
    client_certificates: Literal["none", "optional", "required"] | None = Field(
        None, description="Whether clients have to show a certificate; default: required if there is a client_ca_file."
    )
    min_version: Literal["1.2", "1.3"] = Field("1.2", description="Oldest version of TLS that is spoken.")
    ciphers: str | None = Field(None, description="OpenSSL's cipher list for TLS 1.2; none: OpenSSL's default.")


class Server(Section):
    """The process and its socket."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of host and port.")
    uds_access: Literal["owner", "group", "everyone"] = Field(
        "group", description="Who may connect to the Unix socket: its file's permissions."
    )
    tls: Tls | None = Field(None, description="Encryption of the port: certificate and key, clients' certificates.")
    management_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of its own for /metrics, /docs and /openapi.json, which the other then does not have; health "
        "paths are on both. Plain HTTP, also with server.tls.",
    )
    management_host: str | None = Field(None, description="Address of the management port; none: server.host.")
    workers: int = Field(1, ge=1, le=64, description="Front-end processes that serve together on one engine.")
    drain_timeout_s: float = Field(30.0, ge=0, description="How long running requests may go on after SIGTERM.")
    api_keys_file: Path | None = Field(None, description="File of `name:sha256` lines; without it no key is asked for.")
    protect_metrics: bool = Field(False, description="Ask for an API key on /metrics, too.")
    operator_endpoints: bool = Field(
        False,
        description="Without API keys: open vLLM's operator endpoints (sleep, scaling, profiling, LoRA loading) to "
        "everybody. With keys they take an operator's key.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Origins, such as https://app.example.com, whose pages may call this server from a browser; "
        "`*` for all.",
    )
    allowed_hosts: tuple[Host, ...] = Field(
        (),
        description="Names in `Host` under which clients without a key call this server, without ports; "
        "`*.example.com` for all below, `*` for any. Empty: on a loopback address this machine's own, else any.",
    )
    trust_client_fields: bool = Field(
        False, description="Let clients set priority, data-parallel rank, KV transfer and the like."
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body.")
    max_total_body_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Bodies over 64 KiB that are held at once, of all requests that have not been answered; beyond it "
        "those that have been arriving for the longest get 503.",
    )
    body_timeout_s: float = Field(
        60.0, gt=0, description="A request's body must be complete so long after its headers."
    )
    min_body_bytes_per_s: int = Field(
        1024, ge=0, description="A body that comes more slowly, over ten seconds, is given up; 0: never."
    )
    max_json_values: int = Field(
        100_000, ge=1000, description="Most values in a JSON body; a long list of numbers (token ids) counts as one."
    )
    max_json_numbers: int = Field(
        2_000_000, ge=1000, description="Most numbers in all lists of a JSON body together, such as token ids."
    )
    max_json_items: int = Field(
        4096, ge=16, description="Most items of one JSON list or object (messages, tools, prompts) but of numbers."
    )
    max_json_depth: int = Field(100, ge=8, le=500, description="How deep a JSON body may nest.")
    max_stop_strings: int = Field(256, ge=4, description="Most strings in `stop`, and in `bad_words`, of a request.")
    prepare_timeout_s: float = Field(
        60.0, gt=0, description="How long checking a body, and rendering its prompt, may take."
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Largest request line plus headers.")
    max_headers: int = Field(256, ge=16, description="How many header lines a request may have.")
    header_timeout_s: float = Field(10.0, gt=0, description="A request's headers must be complete by then.")
    idle_timeout_s: float = Field(
        75.0, gt=0, description="How long a connection without a request stays open; proxies must close theirs earlier."
    )
    max_connection_age_s: float = Field(
        300.0,
        ge=0,
        description="The first answer after so long, a tenth more or less, is its connection's last: clients come to "
        "replicas that are newer. 0: never.",
    )
    middleware: tuple[str, ...] = Field(
        (), description="ASGI middleware of yours, as import paths (`package.module.Name`); the last is the outermost."
    )


class Admission(Section):
    """Who may start now."""

    max_concurrent: int = Field(256, ge=1, description="Sequences in the engine at once.")
    max_waiting: int = Field(512, ge=0, description="Requests that may wait for a seat.")
    queue_timeout_s: float = Field(60.0, gt=0, le=86_400, description="How long one may wait.")


class Grammars(Section):
    """What a grammar (JSON schema, regular expression, EBNF, choices, structural tag) of a request may cost. It is
    compiled in a process of its own before the request waits for a seat."""

    timeout_s: float = Field(
        4.0, gt=0, le=600, description="CPU time of one compilation; on the clock 1.75 times as long. Then it is a 400."
    )
    max_bytes: int = Field(512 * 2**10, ge=1024, description="Length of a schema, expression or grammar.")
    max_properties: int = Field(2000, ge=1, description="Properties and definitions in a JSON schema, at all levels.")
    max_choices: int = Field(5000, ge=1, description="Alternatives: choices, enum values, `|` of an expression.")
    max_nesting: int = Field(64, ge=1, le=64, description="Levels of a JSON schema; vLLM allows no more than 64.")
    max_memory_bytes: int = Field(256 * 2**20, ge=2**20, description="Memory of one compilation.")
    processes: int = Field(8, ge=1, le=256, description="Grammars that are compiled at once; workers share them.")


class Streams(Section):
    """What a stream may cost, and how long."""

    keepalive_s: float = Field(15.0, gt=0, description="Seconds of silence after which a comment is sent.")
    stall_timeout_s: float = Field(
        30.0, gt=0, description="How long one send may wait for a client that reads nothing."
    )
    max_timeout_s: float = Field(
        3600.0,
        gt=0,
        le=86_400,
        description="Longest deadline of a request, and the deadline of those that name none; a day at most.",
    )
    max_grace_s: float = Field(
        600.0, ge=0, description="Longest time that a resumable stream goes on without a reader."
    )
    retention_s: float = Field(120.0, ge=0, description="How long a finished resumable stream stays readable.")
    max_bytes: int = Field(2**20, ge=4096, description="Events that one resumable stream keeps; the oldest go first.")
    max_total_bytes: int = Field(
        256 * 2**20, ge=4096, description="Events that all resumable streams keep; the oldest finished go first."
    )


class Supervision(Section):
    """When an engine counts as dead, and how often it is restarted."""

    max_restarts: int = Field(3, ge=0, description="Restarts within window_s; the next death ends the process.")
    window_s: float = Field(600.0, gt=0, description="Over how long restarts are counted.")
    hang_timeout_s: float = Field(
        60.0,
        gt=0,
        description="An engine that does not compute and leaves a question unanswered for so long is ended and "
        "restarted.",
    )
    long_step_timeout_s: float = Field(
        600.0,
        gt=0,
        description="The same for an engine that computes: no step, such as a long prefill, may take longer.",
    )


class Settings(BaseSettings):
    """Everything that can be set. `engine` holds vLLM's own arguments by vLLM's own names."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__", case_sensitive=False
    )

    server: Server = Server()
    admission: Admission = Admission()
    grammars: Grammars = Grammars()
    streams: Streams = Streams()
    supervisor: Supervision = Supervision()
    synthetic: Synthetic = Synthetic()
    media: Media = Media()
    log: Log = Log()
    engine: dict[str, Any] = Field(default_factory=dict)


class _Document(PydanticBaseSettingsSource):
    """A tree that has been read already."""

    document: Mapping[str, Any] = {}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.document.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.document)


def load(
    flags: Mapping[str, Mapping[str, Any]], file: Path | None, surroundings: Surroundings | None = None
) -> Settings:
    """Build the tree. `flags` holds what the command line set, by section and key.

    Raises SettingsError that names each wrong key, its source and the fix.
    """
    around = surroundings or Surroundings()
    problems = list(around.problems)
    document: dict[str, Any] = {}
    if file is not None:
        try:
            document = _read(file)
        except SettingsError as error:
            problems += error.problems
    problems += _strange_variables()

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            yaml_source, fallback = _Document(settings_cls), _Document(settings_cls)
            yaml_source.document = document
            fallback.document = {section: dict(values) for section, values in around.fallback.items()}
            return named["init_settings"], named["env_settings"], yaml_source, fallback

    try:
        given: dict[str, Any] = {section: dict(values) for section, values in flags.items() if values}
        # Of the class itself, which workers can be given as it is.
        settings = Settings.model_construct(**dict(Sources(**given)))
    except ValidationError as error:
        sources = settings_errors.Sources(Settings, flags, document, file, os.environ, around)
        problems += [settings_errors.explain(problem, sources) for problem in error.errors()]
    except SettingsSourceError as error:
        # A variable for a whole section that is not JSON.
        problems.append(f"{error}.")
    else:
        document = {"engine": settings.engine}
        problems += _wrong_together(settings)
    if isinstance(engine := document.get("engine"), dict):
        problems += around.wrong_keys({str(name): value for name, value in engine.items()})
    if problems:
        raise SettingsError(*dict.fromkeys(problems))
    return settings


def _wrong_together(settings: Settings) -> Iterator[str]:
    """A sentence for each pair of settings of which only one can be."""
    server, workers, streams = settings.server, settings.server.workers, settings.streams
    if server.management_port is not None:
        host = server.management_host or server.host
        if server.uds is None and server.management_port == server.port != 0 and host == server.host:
            yield f"server.management_port: {server.port} is server.port, too; choose another."
    elif server.management_host is not None:
        yield "server.management_host needs server.management_port."
    if workers > 1 and streams.max_total_bytes // workers < streams.max_bytes:
        yield (
            f"server.workers: {workers} workers divide streams.max_total_bytes ({streams.max_total_bytes}), and no "
            f"share would hold one resumable stream (streams.max_bytes, {streams.max_bytes}). Set "
            f"streams.max_total_bytes to {workers * streams.max_bytes} or more, or server.workers to 1."
        )


def show(settings: Settings, flags: Mapping[str, Any] | None = None) -> str:
    """The effective settings as YAML, with secrets hidden. `flags` are arguments of vLLM's command line by name."""
    tree = settings.model_dump(mode="json", by_alias=True)
    engine = {name.replace("-", "_"): value for name, value in tree["engine"].items()}
    tree["engine"] = _hide({**engine, **(flags or {})})
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _HIDDEN if _is_secret(str(name)) else _hide(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(inner) for inner in value]
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        # vLLM takes JSON as text.
        try:
            inner = json.loads(value)
        except ValueError:
            return _HIDDEN if any(word in value.lower() for word in _SECRET_WORDS) else value
        hidden = _hide(inner)
        return value if hidden == inner else json.dumps(hidden)
    return value


def _is_secret(name: str) -> bool:
    lowered = name.lower().replace("-", "_")
    return any(lowered == word or lowered.endswith("_" + word) for word in _SECRET_WORDS)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"The settings file {file} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {file} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SettingsError(f"The settings file {file} is not valid YAML{where}.") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError(
            f"The settings file {file} must hold sections such as `server:`, not a {type(document).__name__}."
        )
    strange = [section for section in document if not isinstance(section, str)]
    if strange:
        raise SettingsError(*(f"{section!r} (in {file}) is not a setting." for section in strange))
    for section in Settings.model_fields:
        if section in document and document[section] is None:
            del document[section]
    return document


def _strange_variables() -> list[str]:
    """A sentence for each variable of ours that is not a setting: pydantic-settings skips those, and a typing error
    must not pass in silence."""
    found = []
    sections = set(Settings.model_fields)
    for variable in os.environ:
        name = variable.upper()
        if (
            not name.startswith(PREFIX)
            or name == "SLUICE_ENGINE_PROCESS"
            or _is_service_link(name, os.environ[variable])
        ):
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        if section not in sections or not key:
            right = [f"{PREFIX}{one.upper()}__{two.upper()}" for one, two in settings_errors.known_keys(Settings)]
            found.append(f"The environment variable {variable} is not a setting.{settings_errors.nearest(name, right)}")
    return found


def _is_service_link(name: str, value: str) -> bool:
    """`SLUICE_PORT` is also what somebody may write who means the port; Kubernetes puts an address there."""
    return _SERVICE_LINK.fullmatch(name) is not None and (name != "SLUICE_PORT" or "://" in value)


def engine_source(settings_file: Path | None, name: str) -> str:
    """Where an `engine:` key came from, for messages."""
    variable = f"{PREFIX}ENGINE__{name.replace('-', '_')}".upper()
    if any(known.upper() == variable for known in os.environ):
        return f"environment variable {variable}"
    return f"in {settings_file}" if settings_file is not None else "command line"


__all__ = [
    "Admission",
    "Grammars",
    "Log",
    "Media",
    "Server",
    "Settings",
    "Streams",
    "Supervision",
    "Surroundings",
    "Synthetic",
    "Tls",
    "engine_source",
    "load",
    "show",
]
