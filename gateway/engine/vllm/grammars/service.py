"""Checks the grammars in requests to one engine."""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMError, VLLMValidationError
from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.utils import _reduced_vocabulary

from gateway.clock import Clock
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm import error_mapping
from gateway.engine.vllm.grammars import extraction, grammar_validation
from gateway.engine.vllm.grammars.check_queue import CheckerConnection, CheckQueue, OnDocument
from gateway.engine.vllm.grammars.check_results import CheckResult, digest
from gateway.engine.vllm.grammars.limits import GrammarLimits, GrammarTooLarge, check_size
from gateway.engine.vllm.grammars.process import CheckerProcess
from gateway.errors import ClientError, Overloaded, SluiceError

logger = logging.getLogger(__name__)

# A longer body is searched and parsed in a thread.
_SHORT_BYTES = 64 * 2**10
# The checker process starts this long after the engine, or with the first grammar. Without it the first grammar would
# have to wait; a server that has run this long will probably stay.
_START_AFTER_S = 15.0
# The client's names of fields, where the extracted requests have other names.
_FIELD_NAMES = {
    "/v1/messages": {"response_format": "output_config.format"},
    "/inference/v1/generate": {"structured_outputs": "sampling_params.structured_outputs"},
}
# The grammar of any JSON object, for which vLLM compiles a constant.
_JSON_OBJECT = {"json_object": True}


class GrammarService:
    """Checks the grammars in requests before these hold a slot."""

    def __init__(self, llm: Any, limits: GrammarLimits, clock: Clock) -> None:
        self._llm = llm
        self._limits = limits
        self._settings = llm.vllm_config.structured_outputs_config
        self._last_digest: tuple[Mapping[str, Any], bytes] = {}, b""
        self._queue = CheckQueue(limits, clock, start=self._start, vocabulary=self._vocabulary)
        self._start_timer = asyncio.get_running_loop().call_later(_START_AFTER_S, self._queue.start_process)
        grammar_validation.replace_validators(self.find_result)
        grammar_validation.check_every_request(llm, self._check_params)

    async def close(self) -> None:
        self._start_timer.cancel()
        await self._queue.close()

    # Requests.

    async def check_request(self, renderer: Any, request: Any, client: str | None) -> None:
        """Check the grammars in a request of one of vLLM's models. Raises ClientError that names the field."""
        named = _extract(extraction.named_grammar, request)
        if named is not None:
            await self._check(named, client)
        if extraction.has_tool_grammars(request):
            self._check_size("tools", {"json": extraction.tool_schemas(request)})
        made = _extract(extraction.parser_grammar, renderer, request)
        if made is not None and (named is None or made[1] is not named[1]):
            await self._check(made, client)

    async def check_body(
        self, renderer: Any, path: str, read_body: Callable[[], Any], body: bytes, client: str | None
    ) -> None:
        """Check the grammars in a body for vLLM's own app; `read_body` parses it within the limits of a body. Raises
        ClientError that names the field."""

        def extract() -> Any:
            document = read_body() if extraction.may_contain_grammar(body) else None
            return extraction.from_document(path, document) if isinstance(document, dict) else None

        try:
            request = extract() if len(body) <= _SHORT_BYTES else await asyncio.to_thread(extract)
        except (VLLMError, ValueError, TypeError, AttributeError, KeyError):
            # vLLM's app refuses this body, with a better message.
            return
        if request is None:
            return
        try:
            await self.check_request(renderer, request, client)
        except ClientError as error:
            field = _FIELD_NAMES.get(path, {}).get(error.param or "", error.param)
            raise ClientError(error.message.replace(f"{error.param}:", f"{field}:", 1), param=field) from None

    async def _check_params(self, params: Any) -> None:
        """Check the grammar in sampling parameters that reach the engine, on whatever path."""
        stats = CURRENT_STATS.get()
        client = None if stats is None else stats.caller.owner
        try:
            await self._check(("structured_outputs", params.structured_outputs), client)
        except ClientError as error:
            # vLLM's handlers turn this class into a 400.
            raise VLLMValidationError(error.message, parameter=error.param) from None
        except Overloaded as error:
            raise GracefulHTTPError(error.message, HTTPStatus.SERVICE_UNAVAILABLE) from None

    # One grammar.

    def find_result(self, constraint: Mapping[str, Any]) -> CheckResult | None:
        """The result for a grammar; None if it has not been checked."""
        backend = self._settings.backend
        if constraint == _JSON_OBJECT and backend in ("auto", "xgrammar", "guidance"):
            return CheckResult("xgrammar" if backend == "auto" else backend)
        if _is_empty(constraint):
            return grammar_validation.LEFT_TO_VLLM
        if any(isinstance(value, str) and len(value) > self._limits.max_bytes for value in constraint.values()):
            # vLLM's request models validate before the size of the grammar is checked.
            return None
        return self._queue.results.get(self._digest(constraint))

    def _digest(self, constraint: Mapping[str, Any]) -> bytes:
        """As `digest`, remembering the last: vLLM validates a request several times in a row, and a long schema takes
        milliseconds."""
        last, key = self._last_digest
        if last.keys() == constraint.keys() and all(last[name] is value for name, value in constraint.items()):
            return key
        key = digest(constraint)
        self._last_digest = constraint, key
        return key

    def _check_size(self, field: str, constraint: Mapping[str, Any]) -> None:
        try:
            check_size(constraint, self._limits)
        except GrammarTooLarge as error:
            raise ClientError(f"{field}: the grammar {error}.", param=field) from None
        except ValueError:
            raise ClientError(f"{field}: the grammar is not valid JSON.", param=field) from None

    async def _check(self, grammar: tuple[str, Any], client: str | None) -> None:
        field, params = grammar
        constraint = grammar_validation.extract_constraint(params)
        if not constraint or self._llm.renderer.tokenizer is None:
            # Without a tokenizer vLLM refuses all grammars itself.
            return
        self._check_size(field, constraint)
        result = self.find_result(constraint) or await self._queue.check(
            constraint, client or "", self._digest(constraint)
        )
        if result.backend is None:
            raise ClientError(f"{field}: the grammar {result.message.rstrip('.')}.", param=field)

    # The process.

    async def _start(self, on_document: OnDocument) -> CheckerConnection:
        config = await asyncio.to_thread(self._config)
        return await CheckerProcess.start(config, on_document)

    def _config(self) -> dict[str, Any]:
        """The checker process's configuration for the served model. Takes a second for a large vocabulary."""
        limits, settings, llm = self._limits, self._settings, self._llm
        config: dict[str, Any] = {
            "timeout_s": limits.timeout_s,
            "wall_s": limits.wall_s,
            "max_memory_bytes": limits.max_memory_bytes,
        }
        tokenizer, model_config = llm.renderer.tokenizer, llm.vllm_config.model_config
        if (
            is_mistral_tokenizer(tokenizer)
            or not GuidanceBackend.is_tokenizer_supported(tokenizer)
            or hasattr(tokenizer, "init_xgrammar")
        ):
            # Such tokenizers need code of vLLM's own, so the checker process imports all of vLLM.
            config["vllm_config"] = base64.b64encode(pickle.dumps(llm.vllm_config)).decode("ascii")
            return config
        from xgrammar import TokenizerInfo

        info = TokenizerInfo.from_huggingface(tokenizer, vocab_size=model_config.get_vocab_size())
        config["tokenizer"] = info.serialize_json()
        config["settings"] = {
            name: getattr(settings, name)
            for name in ("backend", "disable_any_whitespace", "disable_additional_properties")
        }
        return config

    async def _vocabulary(self) -> dict[str, Any]:
        tokenizer = self._llm.renderer.tokenizer
        reduced = await asyncio.to_thread(_reduced_vocabulary, tokenizer)
        tokens = {base64.b64encode(token).decode("ascii"): ids for token, ids in reduced.items()}
        return {"tokens": tokens, "eos": tokenizer.eos_token_id}


def _extract(extract: Any, *args: Any) -> Any:
    """The result of `extract`, with vLLM's refusals as ours. None after any other exception: vLLM raises it again
    later, with a message of its own."""
    try:
        return extract(*args)
    except (VLLMError, ValueError) as error:
        refused = error_mapping.from_exception(error)
        if isinstance(refused, ClientError):
            raise refused from None
        return None
    except SluiceError:
        raise
    except Exception:
        logger.debug("a request's grammar could not be extracted", exc_info=True)
        return None


def _is_empty(constraint: Mapping[str, Any]) -> bool:
    """Whether vLLM refuses this constraint without compiling."""
    return any(
        value is False
        or (name in ("json", "grammar", "structural_tag") and isinstance(value, str) and not value.strip())
        or (name == "choice" and not value)
        for name, value in constraint.items()
    )
