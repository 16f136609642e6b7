"""`VLLM_*` variables of the server, as opposed to the engine: each works, sets a setting, or is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from gateway.engine.vllm.startup.arguments import catalog
from gateway.hints import did_you_mean, nearest

SETTINGS = {
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "server.idle_timeout_s",
    "VLLM_HTTP_MAX_REQUEST_BODY_SIZE": "server.max_body_bytes",
}
"""Variables that set a setting of ours, unless it is set elsewhere."""

REFUSED = {
    "VLLM_API_KEY": "Sluice reads its keys from the file in server.api_keys_file (lines of NAME:SHA256-OF-THE-KEY; "
    "`sluice key new NAME` makes one). Unset it.",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "A dead engine is restarted inside the running server, at most "
    "supervisor.max_restarts times. Unset it.",
    "VLLM_USE_RUST_FRONTEND": "Sluice is the front end, and does not start vLLM's. Unset it.",
    "VLLM_CONFIGURE_LOGGING": "Sluice configures the log of vLLM's processes: use log.level and log.json. Unset it.",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "Use `--enable-log-requests --enable-log-outputs`, which log answers. "
    "Unset it.",
}
"""Variables without effect here, or with another effect than in vLLM."""

PASSED = frozenset(
    {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_DISABLE_LOG_LOGO",
        "VLLM_ENGINE_READY_TIMEOUT_S",
        "VLLM_ENABLE_COHERE_API",
        "VLLM_ENABLE_RESPONSES_API_STORE",
        "VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS",
        "VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS",
        "VLLM_LOGGING_LEVEL",
        "VLLM_LOG_STATS_INTERVAL",
        "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB",
        "VLLM_MAX_AUDIO_DECODE_BYTES",
        "VLLM_MAX_AUDIO_DECODE_DURATION_S",
        "VLLM_MAX_AUDIO_PREPROCESS_WORKERS",
        "VLLM_MAX_COMPLETION_PROMPTS",
        "VLLM_MAX_N_SEQUENCES",
        "VLLM_MAX_STOP_STRINGS",
        "VLLM_MEDIA_CONNECTOR",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS",
        "VLLM_REQUEST_BODY_LOG_LEVEL",
        "VLLM_SERVER_DEV_MODE",
        "VLLM_SKIP_MODEL_NAME_VALIDATION",
        "VLLM_SYSTEM_START_DATE",
        "VLLM_TOOL_JSON_ERROR_AUTOMATIC_RETRY",
        "VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT",
        "VLLM_VIDEO_FETCH_TIMEOUT",
    }
)
"""Variables of vLLM's serving code that work as in `vllm serve`."""

WITHOUT_EFFECT = {
    "VLLM_LOGGING_COLOR": "Sluice formats vLLM's log lines itself; log.json selects the format.",
    "VLLM_LOGGING_PREFIX": "Sluice formats vLLM's log lines itself; log.json selects the format.",
    "VLLM_LOGGING_STREAM": "Sluice's log and vLLM's go to stderr.",
}
"""Variables without effect here, for each of which the log has a line at the start."""

_ON = frozenset({"VLLM_CONFIGURE_LOGGING"})
"""Refused variables that are on by default: only a value that switches them off is refused."""

# Kubernetes sets these in every pod of a namespace with a Service named "vllm".
_SERVICE_LINK = re.compile(r"VLLM_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


def problems(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each refused variable that is set."""
    return [
        f"The environment variable {name} is set. {sentence}"
        for name, sentence in REFUSED.items()
        if environment.get(name, "").lower() not in ("", *(("1", "true") if name in _ON else ("0", "false")))
    ]


def settings(environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, str]]:
    """The settings that variables set, by section and key."""
    found: dict[str, dict[str, str]] = {}
    for name, setting in SETTINGS.items():
        if environment.get(name):
            section, _, key = setting.partition(".")
            found.setdefault(section, {})[key] = environment[name]
    return found


def warnings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable without effect, and for each that vLLM does not have, which may be misspelled."""
    known = catalog.installed_catalog()
    found = [
        f"The environment variable {name} has no effect. {note}"
        for name, note in WITHOUT_EFFECT.items()
        if name in environment
    ]
    for name, value in environment.items():
        if not name.startswith("VLLM_") or name in known.variables or not known.complete:
            continue
        if _SERVICE_LINK.fullmatch(name) and (name != "VLLM_PORT" or "://" in value):
            continue
        hint = did_you_mean(nearest(name, known.variables, cutoff=0.8))
        found.append(f"The environment variable {name} is set, but vLLM has no variable of that name.{hint}")
    return found
