"""From the bytes of a body to a document for vLLM's models: within the limits, without untrusted fields.

Some fields have bounds of their own: a stop string is searched for with each token, a bad word is tokenized, and token
ids are compared with the vocabulary one by one, all on the event loop. No request needs more token ids than the
vocabulary has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.engine.bounded_json import BodyLimits, read_document
from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
from gateway.errors import ClientError

_PROMPTS = ("prompt", "input", "token_ids")
_STRINGS = ("stop", "bad_words", "stop_sequences")
_IDS = ("stop_token_ids", "allowed_token_ids", "logit_bias", "logprob_token_ids")
_NO_CHOICE = frozenset({"none", "auto"})


@dataclass(frozen=True, slots=True)
class DocumentReader:
    """Reads bodies. `vocabulary` is the model's number of tokens, `context` the most tokens of one sequence."""

    field_filter: UntrustedFieldFilter
    limits: BodyLimits
    vocabulary: int
    context: int

    def read(self, body: bytes) -> tuple[Any, bool]:
        """The document, of any JSON type, and whether fields were removed from it. Raises ClientError."""
        document = read_document(body, self.limits)
        return document, isinstance(document, dict) and self.field_filter.remove_fields(document)

    def read_object(self, body: bytes) -> dict[str, Any]:
        """The document, which must be an object. Raises ClientError that names the field."""
        document, _ = self.read(body)
        if not isinstance(document, dict):
            raise ClientError("The request body must be a JSON object.")
        drop_empty_fields(document)
        _check_prompt_length(document, self.context)
        _check_field_sizes(document, max_stop_strings=self.limits.max_stop_strings, vocabulary=self.vocabulary)
        return document


def drop_empty_fields(document: dict[str, Any]) -> None:
    """Remove the fields that mean the same as their absence from a parsed body, in place.

    Clients send every field that they support, with `null` or an empty list where their user set nothing, and vLLM's
    request models agree neither with each other nor with the official servers on which of these they accept. Removed
    are those with `null`, `tools` without a tool, and a `tool_choice` that selects no tool where there are none. Raises
    ClientError for a `tool_choice` that selects a tool where there are none.
    """
    empty = [name for name, value in document.items() if value is None]
    if document.get("tools") == []:
        empty.append("tools")
    for name in empty:
        del document[name]
    choice = document.get("tool_choice")
    if choice is None or "tools" in document:
        return
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not isinstance(kind, str) or kind not in _NO_CHOICE:
        raise ClientError(
            "tool_choice: there are no tools to choose from; name them in `tools`, or leave `tool_choice` out.",
            param="tool_choice",
        )
    del document["tool_choice"]


def _check_prompt_length(document: dict[str, Any], context: int) -> None:
    """Refuse more token ids than the context holds at once, before the request waits: a million of them take 40 MB
    while they wait."""
    if document.get("truncate_prompt_tokens") is not None:
        return
    for name in _PROMPTS:
        value = document.get(name)
        if not isinstance(value, list):
            continue
        lists = [one for one in value if isinstance(one, list)] if value and isinstance(value[0], list) else [value]
        for ids in lists:
            if len(ids) > context and type(ids[0]) is int:
                raise ClientError(
                    f"{name}: This model's maximum context length is {context} tokens; the prompt has {len(ids)}.",
                    param=name,
                )


def _check_field_sizes(document: dict[str, Any], *, max_stop_strings: int, vocabulary: int) -> None:
    """Raises ClientError that names a field with too many entries, also in `sampling_params`."""
    for fields, prefix in ((document, ""), (document.get("sampling_params"), "sampling_params.")):
        if not isinstance(fields, dict):
            continue
        for name in _STRINGS:
            if isinstance(value := fields.get(name), list) and len(value) > max_stop_strings:
                raise ClientError(
                    f"{prefix}{name} has {len(value)} strings; at most {max_stop_strings} are taken "
                    "(server.max_stop_strings).",
                    param=prefix + name,
                )
        for name in _IDS:
            if isinstance(value := fields.get(name), list | dict) and len(value) > vocabulary:
                raise ClientError(
                    f"{prefix}{name} has {len(value)} entries; the model's vocabulary has {vocabulary}.",
                    param=prefix + name,
                )
