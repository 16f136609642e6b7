"""Write the generated documentation: settings.md from the sections of the settings, vllm-flags.md from the decisions
about vLLM's flags.

`make docs` runs it; tests compare the result with the files that are checked in.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs import vllm_flags
from docs.markdown import table
from gateway.settings import Settings
from gateway.settings_errors import PREFIX

DOCS = Path(__file__).parent

_HEAD = """\
# Settings

A setting comes from, in this order, a flag of `sluice serve`, an environment variable, the YAML file that `--config`
names, or its default. An unknown key, variable or flag is an error that names it, its source and the nearest known one.
`sluice check` with the arguments of `sluice serve` prints the effective settings, with secrets hidden.

```yaml
server:
  host: 0.0.0.0
  api_keys_file: /etc/sluice/keys
  cors_origins: [https://app.example.com]
admission: {max_concurrent: 128}
engine: {max_model_len: 8192, tensor_parallel_size: 2}
```

An environment variable holds one value: `SLUICE_SERVER__PORT=9000`. A list is written as JSON:
`SLUICE_SERVER__CORS_ORIGINS='["https://app.example.com"]'`. The unit of a number is the end of its name: `_s` seconds,
`_ms` milliseconds, `_us` microseconds, `_bytes` bytes. The flags `--host`, `--port`, `--workers`, `--api-keys-file`,
`--max-concurrent`, `--max-waiting`, `--log-level` and `--log-json` set the settings of the same names.

`make docs` writes this file from `{source}`.
"""
_ENGINE = """\
## engine

Any engine argument of vLLM by vLLM's own name: `engine: {max_model_len: 8192}`, or the variable
`SLUICE_ENGINE__MAX_MODEL_LEN`. The flags of `vllm serve` are taken as they are and have precedence over this section;
[vllm-flags.md](vllm-flags.md) lists them.
"""


def settings_text() -> str:
    """The whole of settings.md."""
    sections = [(name, field.annotation) for name, field in Settings.model_fields.items()]
    models = [
        (name, section) for name, section in sections if isinstance(section, type) and issubclass(section, BaseModel)
    ]
    source = Path(sys.modules[models[0][1].__module__].__file__ or "").relative_to(DOCS.parent)
    parts = [
        _HEAD.replace("{source}", str(source)),
        *(part for name, section in models for part in _section(name, section)),
    ]
    return "\n".join([*parts, _ENGINE])


def _section(name: str, section: type[BaseModel]) -> Iterator[str]:
    rows, nested = [], []
    for attribute, field in section.model_fields.items():
        key = f"{name}.{field.alias or attribute}"
        inner = [kind for kind in _alternatives(field) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        nested += [(key, kind) for kind in inner]
        variable = "" if inner else f"`{PREFIX}{key.upper().replace('.', '__')}`"
        allowed = "a section, see below" if inner else _allowed(field)
        rows.append((f"`{key}`", variable, _default(key, field), allowed, field.description or ""))
    doc = " ".join((section.__doc__ or "").split())
    yield f"## {name}\n\n{doc}\n\n{table(('setting', 'variable', 'default', 'values', 'meaning'), rows)}\n"
    for key, kind in nested:
        yield from _section(key, kind)


def _alternatives(field: FieldInfo) -> tuple[Any, ...]:
    """The types that the field takes, without None."""
    kind = field.annotation
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    return tuple(one for one in kinds if one is not type(None))


def _default(key: str, field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if key.endswith("_bytes") and value >= 2**10:
        power, unit = next(
            (power, unit) for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if value >= 2**power
        )
        return f"`{value}` ({value / 2**power:g} {unit})"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _allowed(field: FieldInfo) -> str:
    """The values that the field takes, in words."""
    (kind,) = _alternatives(field)
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind in (int, float):
        bounds = {
            name: getattr(one, name) for one in field.metadata for name in ("ge", "gt", "le") if hasattr(one, name)
        }
        words = {"ge": "at least", "gt": "more than", "le": "at most"}
        return " and ".join(f"{words[name]} {bounds[name]:,}" for name in words if name in bounds)
    if typing.get_origin(kind) is tuple:
        return "list"
    return "path" if kind is Path else "text"


def generate() -> dict[Path, str]:
    """The generated files and their texts."""
    return {DOCS / "settings.md": settings_text(), DOCS / "vllm-flags.md": vllm_flags.text()}


def main() -> None:
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
