"""vLLM's AsyncLLM as our engine: the only folder that imports vllm.

- `engine`: the `Engine` protocol over AsyncLLM; `request_runner`: the three ways in which a request runs on it;
  `request_models`: bodies of our endpoints as requests of vLLM's models.
- `startup/`: from settings to a running AsyncLLM: arguments, environment, engine processes, startup errors.
- `core_client/`: vLLM's client of the engine process, which outlives that process: restart, replay, receive.
- `output/`: the fast path from the engine's outputs to text, and statistics in batches.
- `http_app/`: vLLM's own HTTP app on our engine: the proxy below it, bodies, errors.
- `grammars/`: the grammars that requests bring, checked in a process of their own.
- `synthetic/`: an executor without a model, its timing and its faults.
- `compat/`: what differs between the supported releases of vLLM, and everything of its internals that is used.
- `engine_process`: the plug-in that runs inside the engine process.
- `error_mapping`: vLLM's errors as ours; `exceptions`: errors of ours that pass through vLLM.
- `bounded_validation`: vLLM's request models, validated at a bounded cost.
- `prompt_offload`: long prompts are worked on beside the event loop; `media_connector`: images, audio and video.
- `daemon_threads`: no thread of vLLM's keeps the process alive at its exit.
"""
