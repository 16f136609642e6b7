"""Requests before a run begins: whether the server answers, which models it serves, how many tokens a word is."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any

from loadtest.client import tls
from loadtest.scenario import prompt_text
from loadtest.scenario.model import Scenario
from loadtest.scenario.workload import ServerInfo

__all__ = ["PreflightError", "ping", "probe"]

_TIMEOUT_S = 10.0
_SAMPLE_WORDS = 400


class PreflightError(Exception):
    """The run cannot begin; the message has the reason and the fix."""


def probe(scenario: Scenario, url: str, key: str | None) -> ServerInfo:
    """The properties of the server at `url`. Raises PreflightError."""
    trust = tls.make_ssl_context(scenario.tls_verify)
    models = _request_json(url, "/v1/models", key, trust)
    listed = [model for model in models.get("data", []) if isinstance(model, dict) and "id" in model]
    if not listed:
        raise PreflightError(f"{url}/v1/models names no model; is this an OpenAI-compatible server?")
    names = [str(model["id"]) for model in listed]
    wanted = {share.name for workload in scenario.workloads for share in workload.models}
    wanted |= {scenario.model} if scenario.model is not None else set()
    if missing := sorted(wanted - set(names)):
        raise PreflightError(f"{url} does not serve {', '.join(missing)}; it serves {', '.join(names)}. Set --model.")
    chosen = listed[names.index(scenario.model)] if scenario.model is not None else listed[0]
    context = chosen.get("max_model_len")
    model = str(chosen["id"])
    return ServerInfo(
        model=model,
        is_vllm=chosen.get("owned_by") == "vllm",
        tokens_per_word=_tokens_per_word(url, model, key, trust),
        context=context if isinstance(context, int) else None,
        version=_version(url, key, trust),
    )


def ping(scenario: Scenario, url: str, model: str, headers: Mapping[str, str]) -> None:
    """Request one token and ignore the result."""
    key = headers.get("Authorization", "").removeprefix("Bearer ") or None
    with suppress(PreflightError):
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        _request_json(url, "/v1/completions", key, tls.make_ssl_context(scenario.tls_verify), body)


def _version(url: str, key: str | None, trust: ssl.SSLContext) -> str:
    """The version that the server reports, or an empty text."""
    try:
        document = _request_json(url, "/version", key, trust)
    except PreflightError:
        return ""
    return ", ".join(f"{name} {number}" for name, number in document.items() if isinstance(number, str))


def _tokens_per_word(url: str, model: str, key: str | None, trust: ssl.SSLContext) -> float:
    """By vLLM's /tokenize; other servers lack it, and there a word counts as one token."""
    sample = prompt_text.make_text(Random(0), _SAMPLE_WORDS, 1.0)
    try:
        answer = _request_json(url, "/tokenize", key, trust, {"model": model, "prompt": sample})
        return float(answer["count"]) / _SAMPLE_WORDS
    except (PreflightError, KeyError, TypeError, ValueError):
        return 1.0


def _request_json(
    url: str, path: str, key: str | None, trust: ssl.SSLContext, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key is not None else {})
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url.rstrip("/") + path, data, headers)  # noqa: S310 - the URL is checked before
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=trust) as answer:  # noqa: S310
            document = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        hint = " Give --api-key, or tenants with keys." if error.code in {401, 403} else ""
        raise PreflightError(f"{url}{path} answers {error.code}.{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PreflightError(f"{url}{path} does not answer: {reason}. Is the server up, and the URL right?") from None
    if not isinstance(document, dict):
        raise PreflightError(f"{url}{path} does not answer with a JSON object.")
    return document
