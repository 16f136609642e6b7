"""The engine, which generates text, behind one protocol.

- `base`: the protocol of an engine and of the sink that takes its output; `shared`: of engine processes with clients.
- `supervisor`: keeps one engine running and reports whether it can serve.
- `watchdog`: when an engine that does not answer counts as dead; `os_processes`: CPU time and state of processes.
- `poison_detector`: which request engines die of.
- `bounded_json`: request bodies within limits on their size and shape.
- `deterministic_tokens`: the tokens of the engine without a model, for tests of streams.
- `vllm/`: vLLM's AsyncLLM as our engine; nothing outside that folder imports vllm.
"""
