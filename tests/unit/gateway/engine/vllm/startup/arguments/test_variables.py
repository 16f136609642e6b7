from __future__ import annotations

from gateway.engine.vllm.startup.arguments import variables


def test_variables_of_the_server_set_settings_or_have_a_sentence() -> None:
    environment = {
        "VLLM_API_KEY": "hush",
        "VLLM_USE_RUST_FRONTEND": "1",
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "0",
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "5",
        "VLLM_HTTP_TIMEOUT_KEEPALIVE": "5",
        "VLLM_SERVICE_HOST": "10.0.0.1",
        "VLLM_PORT": "tcp://10.0.0.1:80",
        "OTHER": "1",
    }

    key, rust = variables.problems(environment)
    assert "server.api_keys_file" in key
    assert "hush" not in key
    assert "VLLM_USE_RUST_FRONTEND" in rust
    assert variables.settings(environment) == {"server": {"idle_timeout_s": "5"}}
    color, warning = variables.warnings(environment)
    assert color.startswith("The environment variable VLLM_LOGGING_COLOR has no effect. ")
    assert len(variables.problems({"VLLM_CONFIGURE_LOGGING": "0"})) == 1
    assert warning.endswith("Did you mean `VLLM_HTTP_TIMEOUT_KEEP_ALIVE`?")
