"""Checking rendered objects against schemas in which nothing unknown passes.

Kubernetes' own kinds: the package kubernetes-validate. Custom resources: schemas/. A kind in neither is an
error, because kubernetes-validate's command would only warn of it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.charts.chart import Object, name_of, pod_templates

SCHEMAS = Path(__file__).parent / "schemas"


def kinds() -> set[str]:
    """The custom resources that have a schema here."""
    return {path.stem for path in SCHEMAS.glob("[A-Z]*.yaml")}


def problems(one: Object, version: str) -> list[str]:
    """What is wrong with an object, as sentences."""
    if one["kind"] in kinds():
        found = [_describe(one, error) for error in _validator(one["kind"]).iter_errors(one)]
        if one["kind"] == "LeaderWorkerSet":
            for pod in pod_templates(one):
                template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
                found += [f"{name_of(one)}: {problem}" for problem in problems(template, version)]
        return found + _against_definitions(one)
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{name_of(one)}: {'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{name_of(one)}: no schema for {one['apiVersion']} {one['kind']} (Kubernetes {version})"]
    return []


@lru_cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    registry: Registry[Any] = Registry().with_resource("common.yaml", DRAFT202012.create_resource(_load("common")))
    return jsonschema.Draft202012Validator(_load(kind), registry=registry)


def _load(name: str) -> Any:
    return yaml.safe_load((SCHEMAS / f"{name}.yaml").read_text(encoding="utf-8"))


def _describe(one: Object, error: jsonschema.ValidationError) -> str:
    return f"{name_of(one)}: {'.'.join(map(str, error.path))}: {error.message}"


def _against_definitions(one: Object) -> list[str]:
    """Against the real CustomResourceDefinitions, for those who have them in a folder."""
    definition = _definitions().get((one["apiVersion"], one["kind"]))
    if definition is None:
        return []
    return [_describe(one, error) for error in jsonschema.Draft7Validator(definition).iter_errors(one)]


@lru_cache
def _definitions() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    folder = os.environ.get("CRD_DIR")
    for path in sorted(Path(folder).glob("*.yaml")) if folder else ():
        for one in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            for version in (one or {}).get("spec", {}).get("versions", ()):
                key = f"{one['spec']['group']}/{version['name']}", one["spec"]["names"]["kind"]
                found[key] = _closed(version["schema"]["openAPIV3Schema"], top=True)
    return found


def _closed(node: Any, *, top: bool = False) -> Any:
    """An OpenAPI schema with unknown fields as errors and `x-kubernetes-int-or-string` as integer or string."""
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    out = {key: _closed(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    if node.get("x-kubernetes-int-or-string"):
        out = {"type": ["integer", "string"]}
    if "properties" in node:
        out["properties"] = {key: _closed(value) for key, value in node["properties"].items()}
        if top:
            out["properties"]["metadata"] = {"type": "object"}
        if "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    return out


__all__ = ["kinds", "problems"]
