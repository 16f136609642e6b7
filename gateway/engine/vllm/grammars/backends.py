"""Checks one grammar the way the engine will compile it. Runs in the checker process, in a child of its own for each
grammar."""

from __future__ import annotations

import base64
import json
import random
import re
import resource
from types import SimpleNamespace
from typing import Any

from gateway.engine.vllm.grammars import compilation
from gateway.engine.vllm.grammars.stub_modules import backend

# The constraint's fields, as vLLM names them.
FIELDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# How long all masks may take besides what each token has.
SLACK_S = 0.5
# Where a grammar becomes slow, it does so after a few tokens.
_WALK_TOKENS = 40
# The library puts the time and its own source file before its message.
_ORIGIN = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_LONGEST_MESSAGE = 400


def used_s() -> float:
    """CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Refused(Exception):
    """The grammar is wrong. The message is for the client."""


class TooMuchMemory(Exception):
    """It passed the limit on memory."""


class NeedsVocabulary(Exception):
    """The grammar can only be compiled by outlines, whose vocabulary the gateway has not sent yet."""


class Backends:
    """What compiles grammars, with the settings and the vocabulary of the served model.

    `config` holds `backend`, `disable_any_whitespace` and `disable_additional_properties` of vLLM's structured-output
    settings; `tokenizer` is xgrammar's description of the vocabulary, as JSON.
    """

    def __init__(self, config: dict[str, Any], tokenizer: str | None) -> None:
        import xgrammar

        self._config = config
        self._tokenizer = None if tokenizer is None else xgrammar.TokenizerInfo.deserialize_json(tokenizer)
        self.vocabulary: Any = None
        """What outlines compiles for, where it is used."""

    def check(self, constraint: dict[str, Any]) -> str:
        """The name of the backend that compiles `constraint`. Raises Refused."""
        fields = {name: constraint.get(name) for name in FIELDS}
        params = SimpleNamespace(structured_outputs=SimpleNamespace(**fields))
        try:
            name = self._choose(params)
            self._compile(name, params.structured_outputs)
        except (Refused, NeedsVocabulary, TooMuchMemory):
            raise
        except Exception as error:
            raise TooMuchMemory if _is_about_memory(error) else Refused(plain(error)) from None
        return name

    def _choose(self, params: Any) -> str:
        """vLLM's choice (`SamplingParams._validate_structured_outputs`), by its own validators."""
        name = str(self._config["backend"])
        if name.startswith("xgrammar"):
            backend("backend_xgrammar").validate_xgrammar_grammar(params)
        elif name.startswith("guidance"):
            backend("backend_guidance").validate_guidance_grammar(params)
        elif name == "outlines":
            backend("backend_outlines").validate_structured_output_request_outlines(params)
        elif name == "lm-format-enforcer":
            backend("backend_lm_format_enforcer").validate_structured_output_request_lm_format_enforcer(params)
        else:
            return self._choose_automatically(params)
        return name

    def _choose_automatically(self, params: Any) -> str:
        try:
            backend("backend_xgrammar").validate_xgrammar_grammar(params)
            return "xgrammar"
        except Exception as error:
            if _is_about_memory(error):
                raise
            first = error
        guidance = backend("backend_guidance")
        schema = params.structured_outputs.json
        if schema and guidance.has_guidance_unsupported_json_features(_document(schema)):
            backend("backend_outlines").validate_structured_output_request_outlines(params)
            return "outlines"
        try:
            guidance.validate_guidance_grammar(params)
        except Exception:
            # Of two refusals the first is the one that the documentation is about.
            raise first from None
        return "guidance"

    def _compile(self, name: str, constraint: Any) -> None:
        from xgrammar import GrammarCompiler

        key = backend("request").get_structured_output_key(constraint)
        if name.startswith("xgrammar") and self._tokenizer is not None:
            module = backend("backend_xgrammar")
            compiles = object.__new__(module.XgrammarBackend)
            compiles.disable_any_whitespace = self._config["disable_any_whitespace"]
            compiles.vocab_size = self._tokenizer.vocab_size
            compiles.num_speculative_tokens = 0
            # One thread: what it takes is then at least what it takes the engine, which has several.
            compiles.compiler = GrammarCompiler(self._tokenizer, max_threads=1, cache_enabled=False)
            # Since vLLM 0.33 structural tags have one of their own, which may know more of the special tokens.
            compiles.full_vocab_compiler = compiles.compiler
            self._walk(compiles.compile_grammar(*key).matcher)
        elif name == "outlines":
            self._index(key)
        elif name == "lm-format-enforcer":
            # It compiles as it goes, apart from its parser.
            pass

    def _walk(self, matcher: Any) -> None:
        """Make masks, as the engine's steps will, for an answer of random tokens. Raises Refused if no token may begin
        an answer, because the engine would fail there, and if the masks take so long that its steps would wait: an
        ambiguous grammar of a few lines can take seconds for each, in which nobody's tokens are generated."""
        import numpy as np

        assert self._tokenizer is not None
        choose = random.Random(0).choice  # noqa: S311 - the same walk each time
        mask = np.full((1, -(-self._tokenizer.vocab_size // 32)), -1, dtype=np.int32)
        began_s = used_s()
        for step in range(_WALK_TOKENS):
            matcher.fill_next_token_bitmask(mask, 0)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if not len(allowed):
                if not step:
                    raise Refused("No text matches it.")
                return
            matcher.accept_token(int(choose(allowed)))
            if used_s() - began_s > SLACK_S + step * compilation.PER_TOKEN_S:
                raise Refused("It is so ambiguous that each token takes too long.")
            if matcher.is_terminated():
                return

    def _index(self, key: Any) -> None:
        import outlines_core  # type: ignore[import-untyped,unused-ignore]
        from outlines_core import json_schema
        from regex import escape  # type: ignore[import-untyped,unused-ignore]

        if self.vocabulary is None:
            raise NeedsVocabulary
        kind, spec = key
        pattern = spec
        if kind.name == "JSON":
            pattern = json_schema.build_regex_from_schema(spec)
        elif kind.name == "CHOICE":
            pattern = "(" + "|".join(escape(str(choice)) for choice in json.loads(spec)) + ")"
        outlines_core.Index(pattern, self.vocabulary)

    def take_vocabulary(self, document: dict[str, Any]) -> None:
        """Have outlines compile for the tokens in `document`: base64 of a token to its ids, and the end-of-sequence
        token's id."""
        import outlines_core

        tokens = {base64.b64decode(token): ids for token, ids in document["tokens"].items()}
        self.vocabulary = outlines_core.Vocabulary(document["eos"], tokens)


class WholeBackends:
    """The same with vLLM itself, for tokenizers that are not Hugging Face's: it takes its imports' time and memory."""

    def __init__(self, vllm_config: Any) -> None:
        from vllm.v1.structured_output import StructuredOutputManager

        compilation.replace_compilation(StructuredOutputManager)
        self._config = vllm_config
        self._manager = StructuredOutputManager(vllm_config)
        # Made once, and not in every child.
        name = vllm_config.structured_outputs_config.backend
        compilation.backend_for(self._manager, "xgrammar" if name == "auto" else name)

    def check(self, constraint: dict[str, Any]) -> str:
        """As `Backends.check`."""
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams
        from vllm.v1.structured_output.request import StructuredOutputRequest

        try:
            params = SamplingParams(
                structured_outputs=StructuredOutputsParams(**{name: constraint.get(name) for name in FIELDS})
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
            raise Refused(plain(error)) from None


def plain(error: BaseException) -> str:
    """The words of a refusal, without the library's source file and at a bounded length."""
    text = _words(error)
    if error.__cause__ is not None and (cause := _words(error.__cause__)) not in text:
        # vLLM says only that a tag or a grammar is invalid.
        text = f"{text} {cause}"
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


def _is_about_memory(error: BaseException) -> bool:
    """Whether it is the limit on memory that was met; the libraries say so in C++, and vLLM only as the cause."""
    causes = [error, error.__cause__, error.__context__]
    return any(isinstance(one, MemoryError) or "bad_alloc" in str(one) for one in causes)


def _words(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(_ORIGIN.sub("", text).split())


def _document(schema: Any) -> Any:
    return json.loads(schema) if isinstance(schema, str) else schema


__all__ = ["FIELDS", "SLACK_S", "Backends", "NeedsVocabulary", "Refused", "TooMuchMemory", "WholeBackends"]
