"""The engine room: what generates, behind one protocol.

- `base`: what an engine must answer, and what it needs from us.
- `supervisor`: keeps one engine running and says whether it can serve.
- `oracle`: what the engine without a model says, for whoever checks a stream.
- `vllm/`: vLLM's AsyncLLM as our engine; nothing outside that folder imports vllm.
"""
