"""Which endpoints of vLLM's app are for clients. All others run the server (scale it, pause it, put it to sleep,
exchange its weights, profile it, load adapters, end anybody's requests), and are for its operators.

The list names what clients may use, by the modules in which vLLM keeps their handlers, so that an endpoint that nobody
has looked at yet, of a newer vLLM or of a plug-in, is an operator's.
"""

from __future__ import annotations

# Everything that these modules and those below them route.
_CLIENT_MODULES = (
    "vllm.entrypoints.anthropic",
    "vllm.entrypoints.cohere",
    "vllm.entrypoints.generate.generative_scoring",
    "vllm.entrypoints.generate.structured_decisions",
    "vllm.entrypoints.openai.chat_completion",
    "vllm.entrypoints.openai.completion",
    "vllm.entrypoints.openai.models",
    "vllm.entrypoints.openai.responses",
    "vllm.entrypoints.pooling",
    "vllm.entrypoints.scale_out.derender",
    "vllm.entrypoints.scale_out.render",
    "vllm.entrypoints.serve.instrumentator.health",
    "vllm.entrypoints.serve.sagemaker",
    "vllm.entrypoints.serve.tokenize",
    "vllm.entrypoints.speech_to_text",
    # Pages of documentation.
    "fastapi.applications",
    # Answers 403 for what `--enable-scale-out` would open.
    "vllm.entrypoints.scale_out.factories",
)
# Of modules that route for both, or that wrap vLLM's handlers in theirs.
_CLIENT_PATHS = frozenset({"/inference/v1/generate", "/invocations", "/load", "/version"})


def is_client_endpoint(module: str, path: str) -> bool:
    """Whether clients may use the endpoint at that path, whose handler is in that module."""
    return path in _CLIENT_PATHS or any(module == one or module.startswith(one + ".") for one in _CLIENT_MODULES)


__all__ = ["is_client_endpoint"]
