"""What Sluice does with each flag of `vllm serve`: exactly one of four things.

Flags of the engine's configuration go to the engine unchanged. These tables have the others, by vLLM's name, and
tests/integration/gateway/engine/vllm/startup/test_argument_lists.py fails with the name of a flag of the installed vLLM
that is not listed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gateway.engine.vllm.startup.arguments import catalog
from gateway.engine.vllm.startup.arguments.catalog import Flag


class RuleKind(Enum):
    PASSED = "passed to vLLM"
    SETTING = "replaced by a setting"
    ALWAYS = "always in effect"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class FlagRule:
    """The rule for one flag. `setting` is the dotted name of ours; `note` is a sentence about it."""

    kind: RuleKind
    note: str = ""
    setting: str = ""
    convert: Callable[[Sequence[str], bool], Any] | None = None
    """Makes the setting's value of the flag's values, and of whether its negative form was given."""


def _last(values: Sequence[str], negative: bool) -> Any:
    return values[-1]


def _comma_separated(values: Sequence[str], negative: bool) -> Any:
    return [item.strip() for item in values[-1].split(",") if item.strip()]


def _json_list(values: Sequence[str], negative: bool) -> Any:
    try:
        found = json.loads(values[-1])
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError("takes a JSON list, such as '[\"https://app.example.com\"]'")
    return found


def _level(values: Sequence[str], negative: bool) -> Any:
    level = values[-1].lower()
    return {"critical": "error", "fatal": "error", "warn": "warning", "trace": "debug", "notset": "debug"}.get(
        level, level
    )


def _client_certificates(values: Sequence[str], negative: bool) -> Any:
    names = {"0": "none", "1": "optional", "2": "required"}
    if values[-1] not in names:
        raise ValueError("takes 0 (the server requests no client certificate), 1 (optional) or 2 (required)")
    return names[values[-1]]


def _set(setting: str, convert: Callable[[Sequence[str], bool], Any] = _last, note: str = "") -> FlagRule:
    return FlagRule(RuleKind.SETTING, note, setting, convert)


SETTINGS: dict[str, FlagRule] = {
    "host": _set("server.host"),
    "port": _set("server.port"),
    "api_server_count": _set("server.workers"),
    "shutdown_timeout": _set("server.drain_timeout_s"),
    "sse_keep_alive_interval": _set("streams.keepalive_s"),
    "uds": _set("server.uds"),
    "ssl_certfile": _set("server.tls.cert_file"),
    "ssl_keyfile": _set("server.tls.key_file"),
    "ssl_ca_certs": _set("server.tls.client_ca_file"),
    "ssl_cert_reqs": _set("server.tls.client_certificates", _client_certificates, "0 none, 1 optional, 2 required."),
    "ssl_ciphers": _set("server.tls.ciphers"),
    "allowed_origins": _set("server.cors_origins", _json_list),
    "middleware": _set(
        "server.middleware", lambda values, _: list(values), "Runs on every path, behind the check of API keys."
    ),
    "uvicorn_log_level": _set("log.level", _level),
    "log_level": _set("log.level", _level, "`debug` includes vLLM's own log."),
    "disable_uvicorn_access_log": _set("log.requests", lambda _, negative: negative),
    "disable_access_log_for_endpoints": _set("log.quiet_paths", _comma_separated),
}

ALWAYS: dict[str, str] = {
    "enable_offline_docs": "`/docs` needs no internet.",
    "enable_ssl_refresh": "Certificates are reloaded when they change.",
    "enable_request_id_headers": "Every response has `X-Request-Id`.",
}

_SUPERVISOR = (
    "Sluice does not start several servers. Start one for each rank, with data_parallel_rank, behind your own load "
    "balancer; or start one with data_parallel_size and, if its front end is too slow, server.workers."
)
_CORS = "Pages of the origins in server.cors_origins may use every method and header of the endpoints."
_HEADERS = "Headers are limited by server.max_header_bytes, bodies by server.max_body_bytes."
_LOGGING = "Sluice configures the log of its own processes and of vLLM's: use log.level and log.json."

REFUSED: dict[str, str] = {
    "api_key": "A key on a command line is visible to every user of the machine. Write `NAME:SHA256-OF-THE-KEY` into "
    "a file and start with --api-keys-file FILE (server.api_keys_file). `sluice key new NAME` makes a key and a line; "
    '`printf %s "$KEY" | sha256sum` prints the hash of an existing key.',
    "config": "Put vLLM's arguments under `engine:` in a YAML file of settings, by vLLM's names, one `name: value` on "
    "each line, and start with `sluice serve --config FILE`, before any `--`.",
    "headless": "Use `sluice engine MODEL`, which starts engines without a server.",
    "grpc": "Sluice serves HTTP: leave it out and use server.port.",
    "grpc_port": "Sluice serves HTTP: leave it out and use server.port.",
    "allowed_methods": _CORS,
    "allowed_headers": _CORS,
    "allow_credentials": "Keys are sent in headers, never in cookies; server.cors_origins alone permits pages.",
    "data_parallel_supervisor_port": _SUPERVISOR,
    "dp_supervisor_probe_interval_s": _SUPERVISOR,
    "dp_supervisor_probe_timeout_s": _SUPERVISOR,
    "dp_supervisor_probe_failure_threshold": _SUPERVISOR,
    "data_parallel_multi_port_external_lb": _SUPERVISOR,
    "max_num_queued_reqs": "Sluice admits requests itself: at most admission.max_concurrent sequences run, and "
    "at most admission.max_waiting requests wait.",
    "max_num_queued_tokens": "Sluice admits requests itself, by their number and not by tokens: use "
    "admission.max_waiting and admission.queue_timeout_s.",
    "h11_max_incomplete_event_size": _HEADERS,
    "h11_max_header_count": _HEADERS,
    "logging_config": _LOGGING,
    "log_config_file": _LOGGING,
    "log_error_stack": "With log.level=debug the log has the stacks of failed requests.",
}

PASSED: dict[str, str] = {
    "disable_log_stats": "",
    "aggregate_engine_logging": "Its lines are in the log whatever log.level is.",
    "fail_on_environ_validation": "",
    "gdn_prefill_backend": "",
    "kda_prefill_backend": "",
    "kda_decode_backend": "",
    "enable_log_requests": "The log has the parameters of requests whatever log.level is, and prompts with `debug`.",
    "lora_modules": "",
    "chat_template": "",
    "chat_template_content_format": "",
    "trust_request_chat_template": "",
    "trust_request_mm_kwargs": "",
    "default_chat_template_kwargs": "",
    "reasoning_effort_map": "",
    "response_role": "",
    "return_tokens_as_token_ids": "",
    "enable_auto_tool_choice": "",
    "exclude_tools_when_tool_choice_none": "",
    "tool_call_parser": "",
    "tool_parser_plugin": "",
    "tool_strict_level": "",
    "tool_server": "",
    "max_log_len": "",
    "enable_prompt_tokens_details": "",
    "enable_per_request_metrics": "",
    "enable_server_load_tracking": "",
    "enable_force_include_usage": "",
    "enable_tokenizer_info_endpoint": "",
    "enable_log_outputs": "The log has the answers whatever log.level is.",
    "enable_log_deltas": "",
    "cohere_is_reasoning_model": "",
    "cohere_format": "",
    "anthropic_disabled_thinking_effort": "",
    "tokens_only": "",
    "enable_scale_out": "",
    "fingerprint_mode": "",
    "fingerprint_value": "",
    "root_path": "",
    "disable_fastapi_docs": "",
    "enable_flash_late_interaction": "",
    "model": "The same as the command's MODEL.",
}


def find_rule(flag: Flag) -> FlagRule | None:
    """The rule for `flag`; None if it is in no table."""
    if (found := SETTINGS.get(flag.name)) is not None:
        return found
    if flag.name in ALWAYS:
        return FlagRule(RuleKind.ALWAYS, ALWAYS[flag.name])
    if flag.name in REFUSED:
        return FlagRule(RuleKind.REFUSED, REFUSED[flag.name])
    if flag.name in PASSED or flag.group.endswith("Config"):
        return FlagRule(RuleKind.PASSED, PASSED.get(flag.name, ""))
    return None


def engine_refusal(name: str) -> str | None:
    """A sentence with the alternative if vLLM's argument `name` is not for `engine:`; None if it is."""
    if name in REFUSED:
        return REFUSED[name]
    if (found := SETTINGS.get(name)) is not None:
        return f"Use {found.setting}."
    return f"{ALWAYS[name]} Leave it out." if name in ALWAYS else None


def setting_hint(name: str) -> str:
    """A hint for an unknown setting `name` that is an argument of vLLM; "" if it is none."""
    flag = catalog.installed_catalog().flags.get(name)
    if flag is None:
        return ""
    return engine_refusal(name) or f"It is an argument of vLLM: write it under `engine:`, as `engine.{name}`."
