"""From the bytes of a body to a document for vLLM's models: within the limits, without untrusted fields.

Some fields have bounds of their own: a stop string is searched for with each token, a bad word is tokenized, and token
ids are compared with the vocabulary one by one, all on the event loop. No request needs more token ids than the
vocabulary has.
"""

from __future__ import annotations

from typing import Any

from gateway.engine.bounded_json import BodyLimits, read_document
from gateway.engine.vllm.http_app.optional_fields import drop_empty_fields
from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
from gateway.errors import ClientError

_PROMPTS = ("prompt", "input", "token_ids")
_STRINGS = ("stop", "bad_words", "stop_sequences")
_IDS = ("stop_token_ids", "allowed_token_ids", "logit_bias", "logprob_token_ids")


class DocumentReader:
    """Reads bodies. `vocabulary` is the model's number of tokens, `context` the most tokens of one sequence."""

    def __init__(self, field_filter: UntrustedFieldFilter, limits: BodyLimits, vocabulary: int, context: int) -> None:
        self._field_filter = field_filter
        self._limits = limits
        self._vocabulary = vocabulary
        self._context = context

    def read(self, body: bytes) -> tuple[Any, bool]:
        """The document, of any JSON type, and whether fields were removed from it. Raises ClientError."""
        document = read_document(body, self._limits)
        return document, isinstance(document, dict) and self._field_filter.remove_fields(document)

    def read_object(self, body: bytes) -> dict[str, Any]:
        """The document, which must be an object. Raises ClientError that names the field."""
        document, _ = self.read(body)
        if not isinstance(document, dict):
            raise ClientError("The request body must be a JSON object.")
        drop_empty_fields(document)
        _check_prompt_length(document, self._context)
        _check_field_sizes(document, max_stop_strings=self._limits.max_stop_strings, vocabulary=self._vocabulary)
        return document


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
