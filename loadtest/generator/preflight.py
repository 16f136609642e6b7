"""Requests before a run begins: whether the server answers, which models it serves, how many tokens a word is."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from loadtest.client import tls
from loadtest.scenario import prompt_text
from loadtest.scenario.model import Scenario
from loadtest.scenario.workload import ServerInfo

_TIMEOUT_S = 10.0
_SAMPLE_WORDS = 400


class PreflightError(Exception):
    """The run cannot begin; the message has the reason and the fix."""


@dataclass(frozen=True, slots=True)
class _Server:
    url: str
    key: str | None
    ssl_context: ssl.SSLContext

    def request_json(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = self.url.rstrip("/") + path
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, headers)  # noqa: S310 - the URL is checked before
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self.ssl_context) as response:  # noqa: S310
                document = json.loads(response.read())
        except urllib.error.HTTPError as error:
            hint = " Give --api-key, or tenants with keys." if error.code in {401, 403} else ""
            raise PreflightError(f"{url} answers {error.code}.{hint}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PreflightError(f"{url} does not answer: {reason}. Is the server up, and the URL right?") from None
        if not isinstance(document, dict):
            raise PreflightError(f"{url} does not answer with a JSON object.")
        return document

    def version(self) -> str:
        """The version that the server reports, or an empty text."""
        try:
            document = self.request_json("/version")
        except PreflightError:
            return ""
        return ", ".join(f"{name} {number}" for name, number in document.items() if isinstance(number, str))

    def tokens_per_word(self, model: str) -> float:
        """By vLLM's /tokenize; other servers lack it, and there a word counts as one token."""
        sample = prompt_text.make_text(Random(0), _SAMPLE_WORDS, 1.0)
        try:
            answer = self.request_json("/tokenize", {"model": model, "prompt": sample})
            return float(answer["count"]) / _SAMPLE_WORDS
        except (PreflightError, KeyError, TypeError, ValueError):
            return 1.0


def probe(scenario: Scenario, url: str, key: str | None) -> ServerInfo:
    """The properties of the server at `url`. Raises PreflightError."""
    server = _Server(url, key, tls.make_ssl_context(scenario.tls_verify))
    models = server.request_json("/v1/models").get("data", [])
    listed = [model for model in models if isinstance(model, dict) and "id" in model]
    if not listed:
        raise PreflightError(f"{url}/v1/models names no model; is this an OpenAI-compatible server?")
    names = [str(model["id"]) for model in listed]
    wanted = {share.name for workload in scenario.workloads for share in workload.models}
    wanted |= {scenario.model} if scenario.model is not None else set()
    if missing := sorted(wanted - set(names)):
        raise PreflightError(f"{url} does not serve {', '.join(missing)}; it serves {', '.join(names)}. Set --model.")
    chosen = listed[names.index(scenario.model)] if scenario.model is not None else listed[0]
    context, name = chosen.get("max_model_len"), str(chosen["id"])
    return ServerInfo(
        model=name,
        is_vllm=chosen.get("owned_by") == "vllm",
        tokens_per_word=server.tokens_per_word(name),
        context=context if isinstance(context, int) else None,
        version=server.version(),
    )


def ping(scenario: Scenario, url: str, model: str, key: str | None) -> None:
    """Request one token and ignore the result."""
    with suppress(PreflightError):
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        _Server(url, key, tls.make_ssl_context(scenario.tls_verify)).request_json("/v1/completions", body)
