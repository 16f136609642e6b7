"""The parts of the parser that work without vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engine.vllm.startup.arguments import vllm_parser


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ({"max_model_len": 8}, ["--max-model-len", "8"]),
        ({"enforce-eager": "true"}, ["--enforce-eager"]),
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"disable_log_stats": False}, []),
        ({"disable_log_stats": True}, ["--disable-log-stats"]),
        ({"hf_overrides": {"a": 1}}, ["--hf-overrides", '{"a": 1}']),
        ({"served_model_name": ["a", "b"]}, ["--served-model-name", "a", "b"]),
        ({"limit_mm_per_prompt.image": 1}, ["--limit-mm-per-prompt.image", "1"]),
        ({"compilation_config.x": True}, ["--compilation-config.x", "true"]),
        ({"chat_template": "-x"}, ["--chat-template=-x"]),
        ({"dtype": None}, []),
    ],
)
def test_engine_settings_become_flags(engine: dict[str, Any], flags: list[str]) -> None:
    assert vllm_parser.to_argv(engine) == flags


def test_every_wrong_engine_setting_has_a_sentence() -> None:
    found = vllm_parser.engine_key_problems(
        {"port": 1, "max_modl_len": 1, "api-key": "hush", "seed": 1}, lambda _: "in f"
    )

    assert found[0] == "engine.port (in f) is not an engine setting here. Use server.port."
    assert found[1] == "engine.max_modl_len (in f) is not a vLLM engine argument. Did you mean `max_model_len`?"
    assert found[2].startswith("engine.api-key (in f) is not an engine setting here. ")
    assert len(found) == 3
    assert "hush" not in str(found)


def test_messages_of_vllm_contain_no_secret() -> None:
    argv = ["--kv-transfer-config", '{"password": "hush"', "--seed", "x", '--hf-overrides={"api_key": "hush"']
    message = f"argument --kv-transfer-config: Value {argv[1]} cannot be converted; {argv[4]!r}: x"

    assert "hush" not in vllm_parser.without_secrets(message, argv)
    assert vllm_parser.without_secrets("argument --seed: invalid int value: 'x'", argv).endswith("'x'")
