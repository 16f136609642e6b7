"""What the README states about the code is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel

from gateway.settings import Settings

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def _settings() -> dict[str, object]:
    found: dict[str, object] = {}
    for section, values in Settings():
        if isinstance(values, BaseModel):
            for name, field in type(values).model_fields.items():
                found[f"{section}.{field.alias or name}"] = field.default
    return found


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([^|]+) \|", README, re.M))
    shown = {name: str(row).strip().strip("`") for name, row in rows.items()}

    def text(value: object) -> str:
        if value is None:
            return "none"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return json.dumps(list(value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    assert shown == {name: text(value) for name, value in _settings().items()}


def test_every_make_target_that_it_names_exists() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.M))

    assert set(re.findall(r"`make ([a-z0-9-]+)", README)) <= targets
