"""One frozen tree of settings: flags > environment (`SLUICE_SECTION__KEY`) > YAML file > defaults.

The only reader of the environment. An unknown key is an error that names the key, its source and the nearest known one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from gateway import settings_errors
from gateway.errors import SettingsError
from gateway.hints import did_you_mean, nearest
from gateway.settings_errors import PREFIX, CommandContext
from gateway.settings_sections import (
    Admission,
    Grammars,
    Log,
    Media,
    Server,
    Streams,
    Supervision,
    Synthetic,
)

_HIDDEN = "********"
# What Kubernetes puts into every pod of a namespace that has a Service named "sluice".
_SERVICE_LINK = re.compile(r"SLUICE_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_SECRET_WORDS = ("token", "secret", "password", "api_key", "credential")


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
    flags: Mapping[str, Mapping[str, Any]], file: Path | None, surroundings: CommandContext | None = None
) -> Settings:
    """Build the tree. `flags` holds what the command line set, by section and key.

    Raises SettingsError that names each wrong key, its source and the fix.
    """
    around = surroundings or CommandContext()
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
            found.append(f"The environment variable {variable} is not a setting.{did_you_mean(nearest(name, right))}")
    return found


def _is_service_link(name: str, value: str) -> bool:
    """`SLUICE_PORT` may be the port, written by an operator; Kubernetes puts an address there."""
    return _SERVICE_LINK.fullmatch(name) is not None and (name != "SLUICE_PORT" or "://" in value)


def engine_source(settings_file: Path | None, name: str) -> str:
    """Where an `engine:` key came from, for messages."""
    variable = f"{PREFIX}ENGINE__{name.replace('-', '_')}".upper()
    if any(known.upper() == variable for known in os.environ):
        return f"environment variable {variable}"
    return f"in {settings_file}" if settings_file is not None else "command line"
