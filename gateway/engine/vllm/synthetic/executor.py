"""An executor without a model: vLLM's scheduler, paged KV bookkeeping and transport are real, the tokens are invented.

It replaces the executor that owns the devices, so everything in front of it is as in production: a server can be loaded
with thousands of streams on two cores, and its engine can be made slow, stuck or dead at a given step.
The tokens are those of `gateway.engine.deterministic_tokens`; the time of a step is slept (`timing`). Stop strings,
`max_tokens`, `ignore_eos`, `n`, chunked prefill, prefix caching, preemption and aborts work, because the scheduler
does them.

Features that need a model are missing: temperatures and seeds change nothing, all choices of one prompt are
equal, log probabilities are constants (0 for the token, one low number for every other), those of the prompt are
absent (a completion that echoes them fails), a grammar (JSON, forced tool calls) ends its request with an error at the
first token that violates it, and models that do not generate are refused.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, LogprobsLists, ModelRunnerOutput

from gateway.engine import deterministic_tokens
from gateway.engine.vllm.synthetic.timing import EXIT_CODE, SETTINGS_KEY, FaultControl

# KV memory is only bookkeeping, some 100 bytes a block; without a bound, 2048 sequences of a context of 32 Ki tokens
# would take half a million blocks. Longer sequences share what there is, and are preempted when it runs out.
_TOKENS_PER_SEQUENCE = 2048
_UNLIKELY = np.float32(-99.0)


class SyntheticExecutor(Executor):  # type: ignore[misc,unused-ignore]
    """One device that does not exist. Raises ValueError for a model whose tokens it cannot generate."""

    supported_tasks = ("generate",)

    def _init_executor(self) -> None:
        if self.model_config.runner_type != "generate":
            raise ValueError("The synthetic engine only generates text; this model does something else.")
        if self.model_config.get_vocab_size() <= deterministic_tokens.LARGEST:
            raise ValueError(
                f"The synthetic engine needs a vocabulary of more than {deterministic_tokens.LARGEST} tokens."
            )
        self._faults = FaultControl(self.vllm_config.additional_config[SETTINGS_KEY])
        # By request id: the first token and the length of the prompt, until the scheduler reports the request's end.
        self._prompts: dict[str, tuple[int, int]] = {}
        # The requests with log probabilities, and how many besides the token's own.
        self._logprobs: dict[str, int] = {}

    # Generating.

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """One step: a token for every request whose tokens have all been computed after it."""
        output = self._execute(scheduler_output)
        if not non_block:
            return output
        done: Future[ModelRunnerOutput] = Future()
        done.set_result(output)
        return done

    def _execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        prompts, timing = self._prompts, self._faults.timing
        is_poisoned = timing.poison_token is not None
        for request_id in step.finished_req_ids:
            prompts.pop(request_id, None)
            self._logprobs.pop(request_id, None)
        scheduled = step.num_scheduled_tokens
        if not scheduled:
            return EMPTY_MODEL_RUNNER_OUTPUT
        request_ids: list[str] = []
        sampled: list[list[int]] = []
        prefill_tokens = 0
        for new in step.scheduled_new_reqs:
            request_id = new.req_id
            first, known = self._remember(new)
            if is_poisoned and timing.is_deadly(first, known):
                os._exit(EXIT_CODE)
            prefill_tokens += scheduled[request_id]
            request_ids.append(request_id)
            complete = new.num_computed_tokens + scheduled[request_id] >= known
            sampled.append([deterministic_tokens.token_at(first, known)] if complete else [])
        cached = step.scheduled_cached_reqs
        for request_id, computed, outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            first, length = prompts[request_id]
            count = scheduled[request_id]
            if count > 1:
                # Still in its prompt, or computed again after a preemption.
                prefill_tokens += count
            known = length + outputs
            if is_poisoned and timing.is_deadly(first, known):
                os._exit(EXIT_CODE)
            request_ids.append(request_id)
            sampled.append([deterministic_tokens.token_at(first, known)] if computed + count >= known else [])
        self._faults.run_step(len(request_ids), prefill_tokens)
        return ModelRunnerOutput(
            req_ids=request_ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(request_ids)},
            sampled_token_ids=sampled,
            logprobs=self._invent(request_ids, sampled) if self._logprobs else None,
        )

    def _remember(self, new: Any) -> tuple[int, int]:
        """The prompt's first token, and how many tokens of the request are known. vLLM schedules a preempted request
        for its second model runner as a new one, with the tokens that it has produced."""
        prompt = new.prompt_token_ids
        first = prompt[0] if prompt else 0
        self._prompts[new.req_id] = first, new.prompt_len
        if new.sampling_params is not None and new.sampling_params.num_logprobs is not None:
            self._logprobs[new.req_id] = new.sampling_params.num_logprobs
        return first, new.prompt_len if new.prefill_token_ids is None else len(new.prefill_token_ids)

    def _invent(self, request_ids: list[str], sampled: list[list[int]]) -> LogprobsLists | None:
        """Constant log probabilities: a row for each request (used or not), the sampled token first."""
        wanted = [self._logprobs[request_id] for request_id in request_ids if request_id in self._logprobs]
        if not wanted:
            return None
        vocabulary = self.model_config.get_vocab_size()
        # -1 stands for the whole vocabulary.
        others = max(vocabulary if number < 0 else number for number in wanted)
        # The token itself, then the ids that follow it.
        sampled_ids = np.array([tokens[0] if tokens else 0 for tokens in sampled], np.int32)[:, np.newaxis]
        ids = (sampled_ids + np.arange(1 + others, dtype=np.int32)) % vocabulary
        logprobs = np.where(ids == sampled_ids, np.float32(0.0), _UNLIKELY)
        return LogprobsLists(ids, logprobs, np.ones(len(request_ids), np.int32))

    # For vLLM's start: the smallest KV cache of the simplest kind, and memory for all of it.

    def get_kv_cache_specs(self) -> list[dict[str, FullAttentionSpec]]:
        return [{"synthetic": self._spec()}]

    def determine_available_memory(self) -> list[int]:
        """Bytes for the sequences that may run at once, and at least for one as long as the context."""
        spec = self._spec()
        context = self.model_config.max_model_len
        blocks_of = [-(-tokens // spec.block_size) for tokens in (min(context, _TOKENS_PER_SEQUENCE), context)]
        blocks = max(self.scheduler_config.max_num_seqs * blocks_of[0], blocks_of[1])
        # vLLM keeps one block for itself.
        return [(blocks + 1) * spec.page_size_bytes]

    def _spec(self) -> FullAttentionSpec:
        return FullAttentionSpec(block_size=self.cache_config.block_size, num_kv_heads=1, head_size=1, dtype=torch.int8)

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["LBHNC"]]

    def collective_rpc(self, method: Any, *_: Any, non_block: bool = False, **__: Any) -> Any:
        """There are no workers. Raises NotImplementedError, so that a call that needs an answer is noticed."""
        raise NotImplementedError(f"the synthetic engine has no worker that could do {method}")

    def _do_nothing(self, *_: Any, **__: Any) -> None:
        """There is no memory, no cache, no graph, no rank and no speculation."""

    set_kv_cache_layout = initialize_from_config = compile_or_warm_up_model = execute_dummy_batch = _do_nothing
    take_draft_token_ids = reset_mm_cache = reset_encoder_cache = check_health = shutdown = _do_nothing
