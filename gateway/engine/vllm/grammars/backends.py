"""Compiles one grammar as the engine will, to check it. Runs in the checker process, in a child of its own for each
grammar."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from types import SimpleNamespace
from typing import Any

from gateway.engine.vllm.grammars import compilation
from gateway.engine.vllm.grammars.stub_modules import import_backend

# The constraint's fields, as vLLM names them.
CONSTRAINT_FIELDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# The CPU time that all masks may take besides the time for each token.
_SLACK_S = 0.5
# A grammar with slow masks becomes slow after a few tokens.
_MASKS = 40
# xgrammar puts the time and its own source file before its message.
_LOG_PREFIX = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_LONGEST_MESSAGE = 400


class GrammarRejected(Exception):
    """The grammar is invalid. The message is for the client."""


class MemoryLimitExceeded(Exception):
    """The check exceeded its limit on memory."""


class VocabularyMissing(Exception):
    """Only outlines can compile the grammar, and the gateway has not sent its vocabulary yet."""


class StandaloneBackends:
    """vLLM's backends without the rest of vLLM, for one set of settings and one model's vocabulary.

    `config` has `backend`, `disable_any_whitespace` and `disable_additional_properties` of vLLM's structured-output
    settings; `tokenizer` is xgrammar's description of the vocabulary, as JSON.
    """

    def __init__(self, config: dict[str, Any], tokenizer: str | None) -> None:
        import xgrammar

        self._config = config
        self._tokenizer = None if tokenizer is None else xgrammar.TokenizerInfo.deserialize_json(tokenizer)
        self.vocabulary: Any = None
        """outlines' vocabulary; None until a grammar needs it."""

    def check(self, constraint: dict[str, Any]) -> str:
        """The name of the backend that compiles `constraint`. Raises GrammarRejected."""
        fields = {name: constraint.get(name) for name in CONSTRAINT_FIELDS}
        params = SimpleNamespace(structured_outputs=SimpleNamespace(**fields))
        try:
            name = self._choose(params)
            self._compile(name, params.structured_outputs)
        except (GrammarRejected, VocabularyMissing, MemoryLimitExceeded):
            raise
        except Exception as error:
            if _is_about_memory(error):
                raise MemoryLimitExceeded from None
            raise GrammarRejected(rejection_message(error)) from None
        return name

    def _choose(self, params: Any) -> str:
        """The backend that vLLM chooses (`SamplingParams._validate_structured_outputs`), by its own validators."""
        name = str(self._config["backend"])
        if name != "auto":
            _validate(name, params)
            return name
        try:
            _validate("xgrammar", params)
            return "xgrammar"
        except Exception as error:
            if _is_about_memory(error):
                raise
            first = error
        schema = params.structured_outputs.json
        if isinstance(schema, str):
            schema = json.loads(schema)
        if schema and import_backend("backend_guidance").has_guidance_unsupported_json_features(schema):
            _validate("outlines", params)
            return "outlines"
        try:
            _validate("guidance", params)
        except Exception:
            # Of two refusals the first is of the backend that the documentation describes.
            raise first from None
        return "guidance"

    def _compile(self, name: str, constraint: Any) -> None:
        from xgrammar import GrammarCompiler

        key = import_backend("request").get_structured_output_key(constraint)
        # lm-format-enforcer's validator has parsed the schema; it compiles the rest during generation.
        if name == "xgrammar" and self._tokenizer is not None:
            module = import_backend("backend_xgrammar")
            xgrammar_backend = object.__new__(module.XgrammarBackend)
            xgrammar_backend.disable_any_whitespace = self._config["disable_any_whitespace"]
            xgrammar_backend.vocab_size = self._tokenizer.vocab_size
            xgrammar_backend.num_speculative_tokens = 0
            # With one thread it takes at least the time that the engine takes with several.
            xgrammar_backend.compiler = GrammarCompiler(self._tokenizer, max_threads=1, cache_enabled=False)
            # Since vLLM 0.33 structural tags have a compiler of their own, for more special tokens.
            xgrammar_backend.full_vocab_compiler = xgrammar_backend.compiler
            self._check_masks(xgrammar_backend.compile_grammar(*key).matcher)
        elif name == "outlines":
            self._check_outlines(key)

    def _check_masks(self, matcher: Any) -> None:
        """Compute masks, as the engine's steps will, for an answer of random tokens. Raises GrammarRejected if no token
        may begin an answer, because the engine would fail there, and if the masks are so slow that the engine's steps
        would wait: an ambiguous grammar of a few lines can take seconds for each, and all requests wait for them."""
        import numpy as np

        assert self._tokenizer is not None
        choose = random.Random(0).choice  # noqa: S311 - the same walk each time
        mask = np.full((1, -(-self._tokenizer.vocab_size // 32)), -1, dtype=np.int32)
        began_s = time.process_time()
        for step in range(_MASKS):
            matcher.fill_next_token_bitmask(mask, 0)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if not len(allowed):
                if not step:
                    raise GrammarRejected("No text matches it.")
                return
            matcher.accept_token(int(choose(allowed)))
            if time.process_time() - began_s > _SLACK_S + step * compilation.PER_TOKEN_S:
                raise GrammarRejected("It is so ambiguous that each token takes too long.")
            if matcher.is_terminated():
                return

    def _check_outlines(self, key: Any) -> None:
        import outlines_core  # type: ignore[import-untyped,unused-ignore]
        from outlines_core import json_schema
        from regex import escape  # type: ignore[import-untyped,unused-ignore]

        if self.vocabulary is None:
            raise VocabularyMissing
        kind, spec = key
        pattern = spec
        if kind.name == "JSON":
            pattern = json_schema.build_regex_from_schema(spec)
        elif kind.name == "CHOICE":
            pattern = "(" + "|".join(escape(str(choice)) for choice in json.loads(spec)) + ")"
        outlines_core.Index(pattern, self.vocabulary)

    def set_vocabulary(self, document: dict[str, Any]) -> None:
        """Set outlines' vocabulary from `document`: `tokens` maps base64 of a token to its ids, `eos` is the id of the
        end-of-sequence token."""
        import outlines_core

        tokens = {base64.b64decode(token): ids for token, ids in document["tokens"].items()}
        self.vocabulary = outlines_core.Vocabulary(document["eos"], tokens)


class VllmBackends:
    """The same with all of vLLM, whose imports take time and memory, for tokenizers that are not Hugging Face's."""

    def __init__(self, vllm_config: Any) -> None:
        from vllm.v1.structured_output import StructuredOutputManager

        compilation.replace_compilation(StructuredOutputManager)
        self._config = vllm_config
        self._manager = StructuredOutputManager(vllm_config)
        # Created once here, not in every child.
        name = vllm_config.structured_outputs_config.backend
        compilation.get_backend(self._manager, "xgrammar" if name == "auto" else name)

    def check(self, constraint: dict[str, Any]) -> str:
        """As `StandaloneBackends.check`."""
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams
        from vllm.v1.structured_output.request import StructuredOutputRequest

        try:
            params = SamplingParams(
                structured_outputs=StructuredOutputsParams(**{name: constraint.get(name) for name in CONSTRAINT_FIELDS})
            )
            params._validate_structured_outputs(
                self._config.model_config, self._config.structured_outputs_config, self._manager.tokenizer
            )
            request = SimpleNamespace(
                sampling_params=params,
                structured_output_request=StructuredOutputRequest(params=params.structured_outputs),
                request_id="check",
                is_finished=lambda: False,
            )
            self._manager.grammar_init(request)
            request.structured_output_request._grammar.result()
            return str(params.structured_outputs._backend)
        except Exception as error:
            raise GrammarRejected(rejection_message(error)) from None


def _validate(name: str, params: Any) -> None:
    """Validate with vLLM's backend of that name, which writes into `params`."""
    module, validator, _ = compilation.BACKENDS[name]
    getattr(import_backend(module), validator)(params)


def rejection_message(error: BaseException) -> str:
    """The message of a refusal, without the library's source file and of bounded length."""
    text = _message_of(error)
    if error.__cause__ is not None and (cause := _message_of(error.__cause__)) not in text:
        # vLLM's own message is only that a tag or a grammar is invalid.
        text = f"{text} {cause}"
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


def _is_about_memory(error: BaseException) -> bool:
    """Whether the limit on memory was exceeded. The libraries raise a C++ exception, which vLLM wraps."""
    causes = [error, error.__cause__, error.__context__]
    return any(isinstance(one, MemoryError) or "bad_alloc" in str(one) for one in causes)


def _message_of(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(_LOG_PREFIX.sub("", text).split())
