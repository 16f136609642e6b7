"""Grammars of one engine: which one a request brings, whether it may, and what to tell its client."""

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
from gateway.engine.vllm.grammars.check_queue import Checker, Link, OnDocument
from gateway.engine.vllm.grammars.check_results import Verdict, digest
from gateway.engine.vllm.grammars.limits import GrammarLimits, TooLarge, measure
from gateway.engine.vllm.grammars.process import CheckerProcess
from gateway.errors import ClientError, Overloaded, SluiceError

logger = logging.getLogger(__name__)

# A longer body is read in a thread.
_SHORT_BYTES = 64 * 2**10
# The checker process is started so long after the engine, or with the first grammar.
_WARM_AFTER_S = 15.0
# What vLLM's models call in their own way.
_NAMES = {
    "/v1/messages": {"response_format": "output_config.format"},
    "/inference/v1/generate": {"structured_outputs": "sampling_params.structured_outputs"},
}
# Any JSON object: vLLM compiles the same constant for everybody.
_JSON_OBJECT = {"json_object": True}


class GrammarService:
    """Checks what requests bring, before they hold a slot."""

    def __init__(self, llm: Any, limits: GrammarLimits, clock: Clock) -> None:
        self._llm = llm
        self._limits = limits
        self._settings = llm.vllm_config.structured_outputs_config
        self._last: tuple[Mapping[str, Any], bytes] = {}, b""
        self._checker = Checker(limits, clock, start=self._start, vocabulary=self._vocabulary)
        # The first grammar would have to wait for it; a server that is up so long is there to stay.
        self._warming = asyncio.get_running_loop().call_later(_WARM_AFTER_S, self._checker.warm)
        grammar_validation.replace_validators(self.find_result)
        grammar_validation.check_every_request(llm, self._guard)

    async def close(self) -> None:
        """End the checker process."""
        self._warming.cancel()
        await self._checker.close()

    # What a request brings.

    async def check_request(self, renderer: Any, request: Any, client: str | None) -> None:
        """Check the grammars of a request of one of vLLM's models. Raises ClientError that names the field."""
        named = _said(extraction.plain, request)
        if named is not None:
            await self._check(named, client)
        if extraction.forces_tools(request):
            self._measure("tools", {"json": extraction.schemas(request)})
        made = _said(extraction.adjusted, renderer, request)
        if made is not None and (named is None or made[1] is not named[1]):
            await self._check(made, client)

    async def check_body(
        self, renderer: Any, path: str, read_body: Callable[[], Any], body: bytes, client: str | None
    ) -> None:
        """Check the grammars of a body that vLLM's own app will read; `read_body` gives its document, within the limits
        of one. Raises ClientError that names the field."""
        is_short = len(body) <= _SHORT_BYTES
        if not (extraction.asks(body) if is_short else await asyncio.to_thread(extraction.asks, body)):
            return

        def read() -> list[Any]:
            document = read_body()
            return list(extraction.of_document(path, document)) if isinstance(document, dict) else []

        try:
            brought = read() if is_short else await asyncio.to_thread(read)
        except (VLLMError, ValueError, TypeError, AttributeError, KeyError):
            # vLLM will say what is wrong with it.
            return
        names = _NAMES.get(path, {})
        for request in brought:
            try:
                await self.check_request(renderer, request, client)
            except ClientError as error:
                mine = names.get(error.param or "", error.param)
                raise ClientError(error.message.replace(f"{error.param}:", f"{mine}:", 1), param=mine) from None

    async def _guard(self, params: Any) -> None:
        """Whatever comes to the engine, by whichever way."""
        stats = CURRENT_STATS.get()
        client = None if stats is None else stats.caller.owner
        try:
            await self._check(("structured_outputs", params.structured_outputs), client)
        except ClientError as error:
            # So that vLLM's handlers know it as a client's fault.
            raise VLLMValidationError(error.message, parameter=error.param) from None
        except Overloaded as error:
            raise GracefulHTTPError(error.message, HTTPStatus.SERVICE_UNAVAILABLE) from None

    # One grammar.

    def find_result(self, constraint: Mapping[str, Any]) -> Verdict | None:
        """What has been found about a grammar."""
        backend = self._settings.backend
        if constraint == _JSON_OBJECT and backend in ("auto", "xgrammar", "guidance"):
            return Verdict("xgrammar" if backend == "auto" else backend)
        if _is_empty(constraint):
            return grammar_validation.LEFT_TO_VLLM
        if any(isinstance(value, str) and len(value) > self._limits.max_bytes for value in constraint.values()):
            # vLLM's request models ask before it has been measured.
            return None
        return self._checker.verdicts.get(self._digest(constraint))

    def _digest(self, constraint: Mapping[str, Any]) -> bytes:
        """As `digest`; vLLM validates a request several times in a row, and a long schema takes milliseconds."""
        last, key = self._last
        if last.keys() == constraint.keys() and all(last[name] is value for name, value in constraint.items()):
            return key
        key = digest(constraint)
        self._last = constraint, key
        return key

    def _measure(self, field: str, constraint: Mapping[str, Any]) -> None:
        try:
            measure(constraint, self._limits)
        except TooLarge as error:
            raise ClientError(f"{field}: the grammar {error}.", param=field) from None
        except ValueError:
            raise ClientError(f"{field}: the grammar is not valid JSON.", param=field) from None

    async def _check(self, named: tuple[str, Any], client: str | None) -> None:
        field, params = named
        constraint = grammar_validation.extract_constraint(params)
        if not constraint or self._llm.renderer.tokenizer is None:
            # Without a tokenizer vLLM has a refusal of its own.
            return
        self._measure(field, constraint)
        verdict = self.find_result(constraint) or await self._checker.check(
            constraint, client or "", self._digest(constraint)
        )
        if verdict.backend is None:
            raise ClientError(f"{field}: the grammar {verdict.message.rstrip('.')}.", param=field)

    # The process.

    async def _start(self, on_document: OnDocument) -> Link:
        config = await asyncio.to_thread(self._config)
        return await CheckerProcess.start(config, on_document)

    def _config(self) -> dict[str, Any]:
        """What the checker process needs to know of the served model. Takes a second for a large vocabulary."""
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
            # Tokenizers with ways of their own: vLLM knows them.
            config["whole"] = base64.b64encode(pickle.dumps(llm.vllm_config)).decode("ascii")
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


def _said(read: Any, *args: Any) -> Any:
    """What `read` says; vLLM's refusals as ours, and nothing where it only trips: vLLM will again, and has words for
    it."""
    try:
        return read(*args)
    except (VLLMError, ValueError) as error:
        refused = error_mapping.from_exception(error)
        if isinstance(refused, ClientError):
            raise refused from None
        return None
    except SluiceError:
        raise
    except Exception:
        logger.debug("a request's grammar could not be told beforehand", exc_info=True)
        return None


def _is_empty(constraint: Mapping[str, Any]) -> bool:
    """Whether vLLM refuses this without compiling anything."""
    return any(
        value is False
        or (name in ("json", "grammar", "structural_tag") and isinstance(value, str) and not value.strip())
        or (name == "choice" and not value)
        for name, value in constraint.items()
    )


__all__ = ["GrammarService"]
