"""Write the files that follow from the chart's values.yaml: values.schema.json, and the table of values in the README.

`python helm/generate.py` (`make docs`) writes both; a test compares them with the files that are checked in. The
descriptions are the comments of values.yaml, types follow from the defaults, helm/schema.yaml adds constraints that a
default cannot express, and the server's own settings come from gateway/settings.py, so that every setting which exists
there can be set here, and no other.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml

from docs.markdown import table
from gateway import settings

HELM = Path(__file__).parent
CHART = HELM / "sluice"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"

_QUANTITY = r"[0-9]+([.][0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?"
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}


def descriptions(text: str) -> dict[str, str]:
    """The comments that begin with `# --`, by the path of the key below them."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped[5:]]
        elif stripped.startswith("#") and comment:
            comment.append(stripped[1:].strip())
        elif match := re.match(r"^( *)([A-Za-z][\w-]*):", line):
            indent = len(match[1])
            path = [one for one in path if one[0] < indent] + [(indent, match[2])]
            if comment:
                found[".".join(name for _, name in path)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


class Builder:
    """Turns the defaults into a schema."""

    def __init__(self, values: dict[str, Any], overlay: dict[str, Any], texts: dict[str, str]) -> None:
        self._values = values
        self._overlay = dict(overlay)
        self._texts = texts

    def build(self) -> dict[str, Any]:
        """The whole schema; raises ValueError if schema.yaml names something that values.yaml does not have."""
        model = self._node("modelDefaults", self._values["modelDefaults"])
        rest = {key: self._node(key, value) for key, value in self._values.items() if key != "modelDefaults"}
        rest["modelDefaults"] = {
            "$ref": "#/definitions/model",
            "description": "What every model has unless it says otherwise.",
        }
        rest["models"] |= {
            "propertyNames": {"pattern": "^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$"},
            "additionalProperties": {"$ref": "#/definitions/model"},
        }
        # Helm hands this to charts that depend on others; a parent may set it for all.
        rest["global"] = {"type": "object", "description": "Not used; parent charts may set it."}
        if self._overlay:
            raise ValueError(f"helm/schema.yaml has keys that values.yaml does not: {sorted(self._overlay)}")
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "Values of the chart sluice",
            "type": "object",
            "properties": rest,
            "additionalProperties": False,
            "allOf": [_present(self._values, {"properties": rest | {"modelDefaults": model}})],
            "definitions": {"model": model},
        }

    def _node(self, path: str, default: Any) -> dict[str, Any]:
        extra = dict(self._overlay.pop(path, {}))
        node: dict[str, Any] = {}
        if path in self._texts:
            node["description"] = self._texts[path]
        if section := extra.pop("settings", None):
            return node | _settings(section, extra.pop("except", []))
        if isinstance(default, dict):
            node["type"] = "object"
            if not extra.pop("free", False) and not (extra.keys() & {"additionalProperties"}) and path != "models":
                node["properties"] = {key: self._node(f"{path}.{key}", value) for key, value in default.items()}
                node["additionalProperties"] = False
        elif extra.pop("quantity", False):
            node |= _quantity(nullable=extra.pop("nullable", False), empty=extra.pop("empty", False))
        elif extra.pop("share", False):
            node["anyOf"] = [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]{1,3}%$"}]
        else:
            node["type"] = extra.pop("type", None) or _TYPES[type(default)]
            extra.pop("free", None)
        return node | extra


def _present(default: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """What may not be set to null: Helm then takes the key out, and a missing number would be rendered as 0."""
    names = [
        name for name, value in default.items() if name in schema["properties"] and value not in (None, "", [], {})
    ]
    properties = schema["properties"]
    inner = {
        name: _present(default[name], properties[name])
        for name in names
        if isinstance(default[name], dict) and "properties" in properties[name]
    }
    required = [name for name in names if name in inner or not _nullable(properties[name])]
    return ({"required": required} if required else {}) | ({"properties": inner} if inner else {})


def _nullable(schema: dict[str, Any]) -> bool:
    kinds = schema.get("type", [])
    return "null" in kinds or kinds in ("array", "object")


def _quantity(*, nullable: bool, empty: bool) -> dict[str, Any]:
    words = {"type": "string", "pattern": f"^({_QUANTITY}){'?' if empty else ''}$"}
    return {"anyOf": [words, {"type": "number", "exclusiveMinimum": 0}, *([{"type": "null"}] if nullable else [])]}


def _settings(section: str, without: list[str]) -> dict[str, Any]:
    """A section of the server's settings."""
    tree = getattr(settings, section).model_json_schema(by_alias=True)
    for name in without:
        del tree["properties"][name]
    for one in tree["properties"].values():
        one.pop("title", None)
        one.pop("format", None)
    return {"type": "object", "properties": tree["properties"], "additionalProperties": False}


def _rows(path: str, value: Any, texts: dict[str, str]) -> list[tuple[str, str, str]]:
    if path in texts:
        shown = json.dumps(value)
        if isinstance(value, str) and "\n" in value:
            shown = "see values.yaml"
        return [(f"`{path}`", "" if value == "" else f"`{shown}`", texts[path])]
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _rows(f"{path}.{key}" if path else key, inner, texts)]
    raise ValueError(f"values.yaml has no description of {path}")


def generate() -> dict[Path, str]:
    """The files and what they should hold."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    overlay = yaml.safe_load((HELM / "schema.yaml").read_text(encoding="utf-8"))
    texts = descriptions(text)
    schema = Builder(values, overlay, texts).build()
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    rows = table(("key", "default", "meaning"), _rows("", values, texts))
    return {
        CHART / "values.schema.json": json.dumps(schema, indent=2) + "\n",
        CHART / "README.md": "\n".join([head + BEGIN, rows, END + tail]),
    }


def main() -> None:
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
