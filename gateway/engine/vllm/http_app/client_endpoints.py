"""The endpoints of vLLM's app that are for clients. All others run the server (scale, pause, put to sleep, exchange
weights, profile, load adapters, abort any request) and are for its operators.

The list names the client endpoints, by the modules of their handlers, so that an endpoint that is new in a later vLLM
or comes with a plug-in counts as an operator's until it is listed here.
"""

from __future__ import annotations

# All routes of these modules and of those below them.
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
    # Answers 403 in place of the endpoints that `--enable-scale-out` opens.
    "vllm.entrypoints.scale_out.factories",
)
# Single routes of modules that serve both, or that wrap vLLM's handlers.
_CLIENT_PATHS = frozenset({"/inference/v1/generate", "/invocations", "/load", "/version"})


def is_client_endpoint(module: str, path: str) -> bool:
    """Whether clients may use the endpoint at `path`, whose handler is in `module`."""
    return path in _CLIENT_PATHS or any(module == one or module.startswith(one + ".") for one in _CLIENT_MODULES)
