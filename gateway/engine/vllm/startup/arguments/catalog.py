"""The flags and variables of the supported vLLM versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from gateway.engine.vllm.compat.check import installed_version, release_of

LISTS = Path(__file__).parent / "lists"

ValueCount = Literal["none", "one", "optional", "many"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One argument of `vllm serve`. `name` is its key in `engine:`, `negative` are the options that switch it off."""

    name: str
    group: str
    options: tuple[str, ...]
    negative: tuple[str, ...]
    values: ValueCount


@dataclass(frozen=True, slots=True)
class Catalog:
    """The flags of vLLM `version`. If `complete`, a flag that is not here does not exist. Otherwise vLLM's own parser
    decides: the installed version has no list, or a plug-in is installed, which may add flags."""

    version: str
    flags: Mapping[str, Flag]
    options: Mapping[str, Flag]
    variables: frozenset[str]
    complete: bool


@cache
def load_catalog(minor: str) -> Catalog:
    """The list of a minor version, such as "0.32"."""
    document = json.loads((LISTS / f"{minor}.json").read_text(encoding="utf-8"))
    flags = {
        name: Flag(name, entry["group"], tuple(entry["options"]), tuple(entry["negative"]), entry["values"])
        for name, entry in document["flags"].items()
    }
    options = {option: flag for flag in flags.values() for option in (*flag.options, *flag.negative)}
    return Catalog(document["version"], flags, options, frozenset(document["variables"]), complete=True)


def listed_versions() -> list[str]:
    """The minor versions with a list, oldest first."""
    return sorted(
        (file.stem for file in LISTS.glob("*.json")), key=lambda text: [int(part) for part in text.split(".")]
    )


@cache
def installed_catalog() -> Catalog:
    """The list of the installed vLLM. Without one of its minor version, all lists together."""
    version, versions = installed_version(), listed_versions()
    minor = release_of(version)
    catalogs = [load_catalog(one) for one in ([minor] if minor in versions else versions)]
    exact = catalogs[0].version == version and not entry_points(group="vllm.platform_plugins")
    if len(catalogs) == 1 and exact:
        return catalogs[0]
    return Catalog(
        version,
        {name: flag for one in catalogs for name, flag in one.flags.items()},
        {option: flag for one in catalogs for option, flag in one.options.items()},
        frozenset().union(*(one.variables for one in catalogs)),
        complete=False,
    )
