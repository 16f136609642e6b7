"""Everything of vLLM that is no public interface and that Sluice reads, calls, overrides or replaces: one list.

`compat.check` holds it against the installed versions, by their source. When vLLM moves, this list names the lines of
ours to look at. A unit test holds it against our own source, so it is complete. What is replaced in other libraries on
vLLM's behalf is on it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

TRIED = ("0.32", "0.33")
"""The vLLM releases against which the tests run, the older first."""


class Kind(StrEnum):
    """How Sluice depends on an entry."""

    READS = "reads"
    CALLS = "calls"
    SETS = "sets"
    OVERRIDES = "overrides"
    REPLACES = "replaces"
    FINDS = "finds in the text"


@dataclass(frozen=True, slots=True)
class Internal:
    """`names` in a module or class (`module:Class`), and which modules below `engine/vllm` depend on them.

    `parameters` are the first parameters by name of a function, without `self`, where ours depends on them. Of a text
    the names are parts. `since`: the release that has brought them; older ones do without.
    """

    where: str
    names: tuple[str, ...]
    kind: Kind
    used_by: tuple[str, ...]
    reason: str
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    since: str = TRIED[0]


# Modules of ours, and the reason; below them a kind, a place, and names, with the parameters that count. `^`: the
# release that has brought what the row names.
_LIST = """
startup.launcher: a client that outlives its engine process stands in front of vLLM's
  replaces vllm.v1.engine.async_llm:AsyncLLM engine_core
startup.launcher: vLLM's finalizer runs again at the interpreter's exit, on modules that are gone
  overrides vllm.v1.engine.async_llm:AsyncLLM __del__
core_client.receiver: outputs are consumed where they arrive, without a second task
  replaces vllm.v1.engine.core_client:AsyncMPClient outputs_queue; _ensure_output_queue_task
core_client.receiver: vLLM's task receives through a reader without pyzmq's asyncio layer
  replaces vllm.v1.engine.core_client:BackgroundResources output_socket; output_queue_task
core_client.restartable: calls to a dead engine are failed at once, and its processes are ended
  reads vllm.v1.engine.core_client:MPClient utility_results; resources; core_engines
core_client.restartable: AsyncLLM must not see a restart as the end; its monitor notices the death of a process
  reads vllm.v1.engine.core_client:BackgroundResources engine_dead; engine_manager
core_client.restartable, core_client.shared: requests are remembered on their way, and sent to the next engine
  calls vllm.v1.engine.core_client:AsyncMPClient get_output_async; add_request_async(request);
        abort_requests_async(request_ids); is_scheduler_paused_async; call_utility_async
core_client.factory: an engine is started for an AsyncLLM that has lost its own
  calls vllm.v1.engine.core_client:EngineCoreClient make_async_mp_client(vllm_config, executor_class, log_stats,
        client_addresses, client_count)
core_client.factory: vLLM leaves out caches that several front-end processes cannot share
  sets vllm.config.parallel:ParallelConfig _api_process_count; _api_process_rank
core_client.replay: a request is sent again with the received tokens as part of its prompt
  sets vllm.v1.engine:EngineCoreRequest prompt_token_ids; sampling_params; mm_features; resumable; prompt_embeds
  sets vllm.sampling_params:SamplingParams max_tokens; min_tokens; prompt_logprobs
core_client.restartable, output.fast_path: aborts that a dying engine adds are dropped; outputs of plain requests are
        consumed before vLLM sees them
  sets vllm.v1.engine:EngineCoreOutputs outputs; scheduler_stats; engine_index; timestamp; weight_version
  reads vllm.v1.engine:EngineCoreOutput request_id; new_token_ids; new_logprobs; finish_reason; events
core_client.remote_engines: vLLM waits for engines on other machines without a limit, and reports it only in its debug
        log
  finds vllm.v1.engine.utils Waiting for %d local, %d remote core engine proc(s) to
engine_process: clients call the method by name to abort the requests that a dead client has left
  sets vllm.v1.engine.core:EngineCoreProc sluice_abort_client; abort_requests(request_ids)
engine_process: vLLM loads no plug-ins in the coordinator's process, which must end with ours, too
  replaces vllm.v1.engine.coordinator:DPCoordinatorProc run_coordinator
engine_process: multiprocessing prints the stack of a failed start, whose error is reported anyway
  replaces traceback print_exc
synthetic.executor: an executor without a model
  overrides vllm.v1.executor.abstract:Executor _init_executor; supported_tasks; execute_model(scheduler_output,
        non_block); get_kv_cache_specs; determine_available_memory; get_supported_kv_cache_layouts;
        set_kv_cache_layout; initialize_from_config; compile_or_warm_up_model; execute_dummy_batch;
        take_draft_token_ids; reset_mm_cache; reset_encoder_cache; collective_rpc(method); check_health; shutdown
engine, startup.launcher: these parts of AsyncLLM are used by name
  reads vllm.v1.engine.async_llm:AsyncLLM output_processor; logger_manager; model_config; errored; dead_error
engine, output.isolation: the task that notices a death is started before the first request, and again when an error has
        ended it
  calls vllm.v1.engine.async_llm:AsyncLLM _run_output_handler; output_handler
output.fast_path: outputs of plain requests are consumed before, and a failing output fails its own request only
  replaces vllm.v1.engine.output_processor:OutputProcessor process_outputs(engine_core_outputs,
        engine_core_timestamp, iteration_stats, weight_version)
output.fast_path, core_client.in_flight, core_client.shared, engine: text goes from vLLM's request states straight to
        our sinks; requests of a dead engine are found there
  reads vllm.v1.engine.output_processor:OutputProcessor request_states; abort_requests(request_ids, internal);
        update_scheduler_stats; has_unfinished_requests
output.isolation: local variables of vLLM's loop name the output at which it failed
  finds vllm.v1.engine.output_processor:OutputProcessor.process_outputs process_outputs; engine_core_output;
        engine_core_outputs; reqs_to_abort
output.isolation: a request whose outputs cannot be processed is aborted in the engine, too
  sets vllm.v1.engine.output_processor:OutputProcessorOutput reqs_to_abort
output.fast_path, core_client.in_flight: a sink takes the place of the queue between vLLM's output processor and its
        generator
  sets vllm.v1.engine.output_processor:RequestState queue; detokenizer; stats; is_prefilling; stream_interval;
        streaming_input; output_kind; logprobs_processor; parent_req; track_weight_version
output.fast_path: tokens of plain requests are decoded without vLLM's step for stop strings
  calls vllm.v1.engine.detokenizer:FastIncrementalDetokenizer stream; tokenizer; token_ids;
        spaces_between_special_tokens; stop; decode_next(next_token_id)
output.fast_path: vLLM's statistics count the tokens that pass it by
  sets vllm.v1.metrics.stats:RequestStateStats num_generation_tokens; last_token_ts
output.fast_path, output.batched_stats: vLLM's statistics count the tokens that pass it by
  sets vllm.v1.metrics.stats:IterationStats num_generation_tokens
output.batched_stats: statistics of steps that only add tokens are written twenty times a second, not after each
  replaces vllm.v1.metrics.loggers:StatLoggerManager record(scheduler_stats, iteration_stats, mm_cache_stats,
        engine_idx); stat_loggers
output.batched_stats: these three take one value a token or a step
  reads vllm.v1.metrics.loggers:PrometheusStatLogger histogram_inter_token_latency; histogram_iteration_tokens;
        counter_generation_tokens
output.batched_stats: many values are observed under one lock; without them each is observed by itself
  reads prometheus_client.metrics:Histogram _upper_bounds; _buckets; _sum
output.eligibility: chunks of plain streams are made by our templates; log probabilities of whole answers later and in a
        thread
  overrides vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat __class__;
        chat_completion_stream_generator(request, result_generator, request_id, model_name);
        _create_chat_logprobs(token_ids, top_logprobs)
  overrides vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion __class__;
        completion_stream_generator(request, engine_inputs, result_generator, request_id, created_time, model_name);
        _create_completion_logprobs(token_ids, top_logprobs)
output.eligibility: sampling parameters are refused while that can be an HTTP status
  overrides vllm.entrypoints.openai.responses.serving:OpenAIServingResponses __class__;
        _generate_with_builtin_tools(request_id, engine_input, sampling_params)
output.eligibility: a parser with steps of its own takes its streams off the fast path
  reads vllm.parser.abstract_parser:DelegatingParser _extract_tool_calls_streaming; parse_delta
output.final_output: a merged last output is split in two
  sets vllm.outputs:RequestOutput outputs; finished
  sets vllm.outputs:CompletionOutput finish_reason; stop_reason; text; token_ids
request_runner: the usage of a stream names the prompt's tokens
  calls vllm.entrypoints.serve.engine.serving:BaseServing _extract_prompt_len(prompt)
daemon_threads: no thread of vLLM's keeps the process alive at its exit
  replaces vllm.renderers.base ThreadPoolExecutor
daemon_threads, media_connector: no thread of vLLM's keeps the process alive at its exit
  replaces vllm.multimodal.media.connector global_thread_pool
daemon_threads: the replaced pool of media threads is as large as vLLM's
  reads concurrent.futures.thread:ThreadPoolExecutor _max_workers
daemon_threads: our render threads need copies of the tokenizer, too
  replaces vllm.renderers.hf maybe_make_thread_pool(tokenizer, copies)
prompt_offload: short texts are tokenized on the loop, long lists of tokens are decoded and checked in threads of ours
  replaces vllm.renderers.base:BaseRenderer _tokenize_prompt_async(prompt, params); _async_tokenizer_decode;
        validate_token_ids(token_ids)
prompt_offload: short texts are tokenized on the loop, long lists of tokens are decoded in threads of ours
  calls vllm.renderers.base:BaseRenderer _tokenize_prompt(prompt, params); _decode
prompt_offload: messages of short chats are rendered on the loop, those of long ones in a thread of ours
  replaces vllm.renderers.hf:HfRenderer render_messages_async(messages, params); render_messages(messages,
        params); _render_with_timeout
prompt_offload, grammars.grammar_validation: token ids are checked in a thread, and no grammar reaches the engine
        unchecked
  replaces vllm.v1.engine.async_llm:AsyncLLM add_request(request_id, prompt, params)
prompt_offload: decoders are primed with the end of a long prompt
  replaces vllm.v1.engine.output_processor:OutputProcessor add_request(request)
  sets vllm.v1.engine.output_processor:RequestState prompt_token_ids; prompt_len
media_connector: limits on what is fetched and decoded for clients who are strangers
  overrides vllm.multimodal.media.connector:MediaConnector load_from_url(url, media_io);
        load_from_url_async(url, media_io); fetch_image_embedding_async; fetch_audio_embedding_async
media_connector: vLLM's own cache of media is used
  calls vllm.multimodal.media.connector:MediaConnector _get_cached_bytes; _put_cached_bytes;
        allowed_media_domains; allowed_local_media_path
media_connector: each frame of a list is decoded within the limits of a picture
  sets vllm.multimodal.media.video:VideoMediaIO image_io; num_frames
grammars.grammar_validation, grammars.backends: grammars are compiled in a process of their own, not on the event loop
  replaces vllm.sampling_params:SamplingParams _validate_structured_outputs(model_config,
        structured_outputs_config, tokenizer)
grammars.grammar_validation: grammars are compiled in a process of their own, not on the event loop
  replaces vllm.v1.structured_output.backend_xgrammar validate_xgrammar_grammar
  replaces vllm.v1.structured_output.backend_guidance validate_guidance_grammar;
        has_guidance_unsupported_json_features
  replaces vllm.v1.structured_output.backend_outlines validate_structured_output_request_outlines
  replaces vllm.v1.structured_output.backend_lm_format_enforcer
        validate_structured_output_request_lm_format_enforcer
grammars.grammar_validation: sampling parameters are refused before a stream begins
  calls vllm.v1.engine.input_processor:InputProcessor _validate_params(params, supported_tasks)
grammars.grammar_validation, grammars.compilation, grammars.backends: the backend that a grammar was checked with
        compiles it; xgrammar has no choices
  sets vllm.sampling_params:StructuredOutputsParams _backend; grammar; choice
grammars.grammar_validation: vLLM's validators write into a copy
  sets vllm.sampling_params:SamplingParams structured_outputs
grammars.compilation: the engine compiles grammars side by side and ends requests whose masks take too long
  replaces vllm.v1.structured_output:StructuredOutputManager grammar_init(request); _create_grammar(request);
        _use_async_grammar_compilation; executor; backend; tokenizer
grammars.compilation, grammars.backends: vLLM's scheduler waits for the grammar there
  sets vllm.v1.structured_output.request:StructuredOutputRequest _grammar; grammar; structured_output_key
grammars.compilation: the time that masks take is measured, and ends the request when it is too long
  replaces vllm.v1.structured_output.backend_types:StructuredOutputGrammar accept_tokens(request_id, tokens);
        fill_bitmask(bitmask, batch_index)
grammars.backends, grammars.compilation: the check compiles with vLLM's own rules, without its engine
  sets vllm.v1.structured_output.backend_xgrammar:XgrammarBackend compiler; disable_any_whitespace; vocab_size;
        num_speculative_tokens
grammars.backends: structural tags have a compiler of their own
  sets vllm.v1.structured_output.backend_xgrammar:XgrammarBackend ^0.33 full_vocab_compiler
grammars.service: outlines compiles for this vocabulary in the check
  calls vllm.v1.structured_output.utils _reduced_vocabulary(tokenizer)
grammars.stub_modules: the check imports vLLM's backends without torch, transformers and the rest of vLLM
  replaces vllm.logger init_logger
  replaces vllm.utils.import_utils LazyLoader
  replaces vllm.utils.mistral is_mistral_tokenizer
  replaces vllm.sampling_params check_json_nesting
  replaces vllm.envs VLLM_REGEX_COMPILATION_TIMEOUT_S; VLLM_V1_USE_OUTLINES_CACHE
http_app.stream_errors: errors in streams are ours, without the text of exceptions
  replaces vllm.entrypoints.generate.base.serving:GenerateBaseServing create_streaming_error_response(message);
        _convert_generation_error_to_streaming_response
  overrides vllm.entrypoints.anthropic.serving:AnthropicServingMessages __class__;
        message_stream_converter(generator)
  replaces vllm.entrypoints.cohere.serving:CohereServingChatV2 _chat_completion_stream_to_v2(generator)
http_app.invocations: the validators of /invocations are found in the closure of its handler, and hand out our result
  finds vllm.entrypoints.serve.sagemaker.api_router:attach_router INVOCATION_VALIDATORS; validate_python
http_app.app: routes are for clients or operators, and need a slot or none, by the module of their handler and their
        path
  finds vllm.entrypoints.serve.sagemaker.api_router /invocations
http_app.error_normalizer: vLLM prints pydantic's errors into its messages, from which the fields are read
  finds pydantic_core._pydantic_core validation error
http_app.invocations: the validators of /invocations hand out our result
  replaces pydantic.type_adapter:TypeAdapter _type; validate_python
http_app.body_intake: the body's field of each route is found
  reads fastapi.routing:APIRoute _embed_body_fields; dependant
http_app.body_intake: FastAPI takes the body that we have validated at a bounded cost
  replaces fastapi._compat.v2:ModelField validate(value, values); field_info
http_app.app: vLLM's CORS middleware is taken out
  sets starlette.applications:Starlette middleware_stack; user_middleware
http_app.app: vLLM's /metrics gives way to ours, which includes its metrics
  sets starlette.routing:Router routes
bounded_validation: pydantic would put its classes' own validators in place of the bounded ones
  finds pydantic_core._pydantic_core:SchemaValidator _use_prebuilt
startup.arguments.vllm_parser: the nearest flag is named for a wrong one
  reads argparse:ArgumentParser _option_string_actions
startup.arguments.vllm_parser: wrong flags end in sentences, not in an exit of the process
  overrides vllm.utils.argparse_utils:FlexibleArgumentParser error(message)
startup.headless: vLLM's command looks for a distribution named vllm, which its CPU build is not
  replaces importlib.metadata version
"""


def _parse(text: str) -> tuple[Internal, ...]:
    entries: list[Internal] = []
    used_by, reason = "", ""
    for line in text.strip().replace("\n        ", " ").splitlines():
        if line.startswith("  "):
            entries.append(_entry(reason, tuple(used_by.split(", ")), *line.strip().split(" ", 2)))
        else:
            used_by, _, reason = line.partition(": ")
    return tuple(entries)


def _entry(reason: str, used_by: tuple[str, ...], kind: str, where: str, names: str) -> Internal:
    since, _, names = names[1:].partition(" ") if names.startswith("^") else (TRIED[0], "", names)
    given = [name.partition("(") for name in names.split("; ")]
    if Kind[kind.upper()] is Kind.FINDS:
        given = [(name, "", "") for name in names.split("; ")]
    parameters = {name: tuple(rest.rstrip(")").split(", ")) for name, _, rest in given if rest}
    return Internal(where, tuple(name for name, *_ in given), Kind[kind.upper()], used_by, reason, parameters, since)


INTERNALS = _parse(_LIST)
