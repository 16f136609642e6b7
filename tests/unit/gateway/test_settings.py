from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from gateway.errors import SettingsError
from gateway.settings import Settings, engine_source, load, show


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SLUICE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sluice.yaml"


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def complaint(flags: dict[str, dict[str, Any]], file: Path | None = None) -> str:
    """The message that `load` fails with: one line, for the operator who has to mend it."""
    with pytest.raises(SettingsError) as caught:
        load(flags, file)

    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_anything_the_defaults_count() -> None:
    settings = load({}, None)

    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert (settings.admission.max_concurrent, settings.admission.max_waiting) == (256, 512)
    assert settings.engine == {}


def test_the_defaults_of_streams_and_supervisor_are_those_that_the_contract_names() -> None:
    settings = load({}, None)

    assert settings.streams.model_dump() == {
        "keepalive_s": 15,
        "stall_timeout_s": 30,
        "max_timeout_s": 3600,
        "max_grace_s": 600,
        "retention_s": 120,
        "max_bytes": 2**20,
        "max_total_bytes": 256 * 2**20,
    }
    assert settings.supervisor.model_dump() == {
        "max_restarts": 3,
        "window_s": 600,
        "hang_timeout_s": 60,
        "long_step_timeout_s": 600,
    }


def test_streams_and_supervisor_are_set_like_everything_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(file, "streams: {keepalive_s: 5, retention_s: 0}\nsupervisor: {max_restarts: 0}\n")
    monkeypatch.setenv("SLUICE_STREAMS__KEEPALIVE_S", "2.5")
    monkeypatch.setenv("SLUICE_SUPERVISOR__HANG_TIMEOUT_S", "7")
    settings = load({}, file)

    assert (settings.streams.keepalive_s, settings.streams.retention_s) == (2.5, 0)
    assert (settings.supervisor.max_restarts, settings.supervisor.hang_timeout_s) == (0, 7)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("streams", "keepalive_s", 0),
        ("streams", "stall_timeout_s", 0),
        ("streams", "max_timeout_s", 0),
        ("streams", "max_grace_s", -1),
        ("streams", "retention_s", -1),
        ("streams", "max_bytes", 4095),
        ("streams", "max_total_bytes", 4095),
        ("supervisor", "max_restarts", -1),
        ("supervisor", "window_s", 0),
        ("supervisor", "hang_timeout_s", 0),
        ("supervisor", "long_step_timeout_s", 0),
    ],
)
def test_a_value_that_cannot_work_is_refused(file: Path, section: str, key: str, value: int) -> None:
    message = complaint({}, written(file, f"{section}: {{{key}: {value}}}"))

    assert message.startswith(f"{section}.{key} (in {file}): {value}: ")


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(file, "server: {port: 1, host: file, max_body_bytes: 2000}\nadmission: {max_waiting: 3}\n")
    monkeypatch.setenv("SLUICE_SERVER__PORT", "4")
    monkeypatch.setenv("SLUICE_SERVER__HOST", "environment")
    settings = load({"server": {"port": 5}}, file)

    assert settings.server.port == 5
    assert settings.server.host == "environment"
    assert settings.server.max_body_bytes == 2000
    assert settings.admission.max_waiting == 3
    assert settings.admission.max_concurrent == 256


def test_engine_arguments_of_all_sources_are_put_together(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(file, "engine: {model: file, max_model_len: 10, hf_overrides: {a: 1}}\n")
    monkeypatch.setenv("SLUICE_ENGINE__MODEL", "environment")
    monkeypatch.setenv("SLUICE_ENGINE__DTYPE", "float32")
    engine = load({"engine": {"seed": 1}}, file).engine

    assert engine == {
        "model": "environment",
        "max_model_len": 10,
        "hf_overrides": {"a": 1},
        "dtype": "float32",
        "seed": 1,
    }


def test_the_json_flag_of_the_log_goes_by_its_short_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}, written(file, "log: {json: true}")).log.as_json
    assert load({"log": {"json": True}}, None).log.as_json

    monkeypatch.setenv("SLUICE_LOG__JSON", "true")

    assert load({}, None).log.as_json


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "server:\nadmission:\nsynthetic:\nlog:\nengine:\n"])
def test_empty_sections_are_no_mistake(file: Path, text: str) -> None:
    """As when everything below a heading is commented out."""
    assert load({}, written(file, text)).model_dump() == load({}, None).model_dump()


def test_an_unknown_key_in_the_file_is_named_with_its_place_and_the_nearest(file: Path) -> None:
    message = complaint({}, written(file, "server: {prot: 1}"))

    assert message == f"server.prot (in {file}) is not a setting. Did you mean `port`?"


def test_an_unknown_section_in_the_file_is_named_with_its_place_and_the_nearest(file: Path) -> None:
    message = complaint({}, written(file, "sever: {port: 1}"))

    assert message == f"sever (in {file}) is not a setting. Did you mean `server`?"


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [("SLUICE_SERVER__PROT", "port"), ("SLUICE_SEVER__PORT", "SERVER__PORT"), ("SLUICE_PORT", "SERVER__PORT")],
)
def test_an_unknown_variable_is_named_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str
) -> None:
    monkeypatch.setenv(variable, "1")
    message = complaint({})

    assert f"environment variable {variable}" in message
    assert "is not a setting" in message
    assert f"{nearest}`?" in message


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICER__X", "1")
    monkeypatch.setenv("PORT", "1")

    assert load({}, None).server.port == 8000


def test_a_wrong_value_is_shown_with_its_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(file, "server: {port: ninety}\n")

    assert f"server.port (in {file}): 'ninety': " in complaint({}, file)

    monkeypatch.setenv("SLUICE_SERVER__PORT", "90000")

    assert "server.port (environment variable SLUICE_SERVER__PORT): '90000': " in complaint({}, file)
    assert "server.port (flag --port): -1: " in complaint({"server": {"port": -1}}, file)


@pytest.mark.parametrize("text", ["server: 5", "log: [a]", "engine: vllm"])
def test_a_section_that_is_no_mapping_is_named(file: Path, text: str) -> None:
    assert text.partition(":")[0] in complaint({}, written(file, text))


@pytest.mark.parametrize("text", ["8000: x", "true: x", "null: x"])
def test_a_key_that_is_no_word_is_named_too(file: Path, text: str) -> None:
    """YAML reads bare `on`, `yes` and numbers as something else than words."""
    assert str(file) in complaint({}, written(file, text))


def test_a_file_that_is_no_mapping_is_refused(file: Path) -> None:
    assert "must hold sections such as `server:`, not a list" in complaint({}, written(file, "- server"))


def test_a_file_that_is_not_yaml_is_refused_with_its_line(file: Path) -> None:
    assert "line 2, column 9" in complaint({}, written(file, "server:\n  port: ]\n"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")

    assert "does not exist" in complaint({}, tmp_path / "missing")
    assert "cannot be read" in complaint({}, tmp_path / "binary")
    assert "cannot be read" in complaint({}, tmp_path)


def test_a_synthetic_engines_numbers_are_checked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_SYNTHETIC__ENABLED", "true")
    monkeypatch.setenv("SLUICE_SYNTHETIC__DIE_AT_STEP", "5")
    synthetic = load({}, written(file, "synthetic: {step_ms: 2.5}")).synthetic

    assert (synthetic.enabled, synthetic.step_ms, synthetic.die_at_step) == (True, 2.5, 5)
    assert synthetic.hang_at_step is None
    assert "synthetic.step_ms" in complaint({}, written(file, "synthetic: {step_ms: -1}"))
    assert "Did you mean `step_ms`?" in complaint({}, written(file, "synthetic: {steps_ms: 1}"))


def test_settings_are_frozen() -> None:
    settings = load({}, None)
    with pytest.raises(pydantic.ValidationError):
        settings.server.port = 1  # type: ignore[misc]


def test_showing_hides_secrets_and_nothing_else(file: Path) -> None:
    written(file, "engine: {api_key: sk-1, hf_token: sk-2, ssl_password: sk-3, max_num_batched_tokens: 64}\n")
    shown = show(load({}, file))

    assert "sk-" not in shown
    assert yaml.safe_load(shown)["engine"]["max_num_batched_tokens"] == 64


def test_shown_settings_can_be_loaded_again(file: Path, tmp_path: Path) -> None:
    """`sluice check` is how people make their first file."""
    settings = load({"server": {"api_keys_file": tmp_path / "k"}, "log": {"json": True}, "engine": {"seed": 3}}, None)

    assert load({}, written(file, show(settings))).model_dump() == settings.model_dump()


def test_an_engine_arguments_source_is_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_source(None, "dtype") == "command line"
    assert engine_source(file, "dtype") == f"in {file}"

    monkeypatch.setenv("SLUICE_ENGINE__MAX_MODEL_LEN", "1")

    assert engine_source(file, "max-model-len") == "environment variable SLUICE_ENGINE__MAX_MODEL_LEN"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLUICE_SERVICE_HOST", "10.0.0.7"),
        ("SLUICE_SERVICE_PORT", "80"),
        ("SLUICE_SERVICE_PORT_HTTP", "80"),
        ("SLUICE_PORT", "tcp://10.0.0.7:80"),
        ("SLUICE_PORT_80_TCP_ADDR", "10.0.0.7"),
    ],
)
def test_the_variables_of_a_kubernetes_service_are_not_settings(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pod gets them when a Service of its namespace is called "sluice"; the server must start all the same."""
    monkeypatch.setenv(name, value)

    assert load({}, None).model_dump() == Settings().model_dump()


def test_secrets_deep_in_the_engine_settings_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("engine: {model: m, hf_overrides: {inner: {api_key: hush}}}\n")

    assert "hush" not in show(load({}, tmp_path / "s.yaml"))


@pytest.mark.parametrize(
    "text",
    ['{"inner": {"password": "hush"}}', '[{"api_key": "hush"}]', '{bad "token": "hush"', ' {"a": 1, "secret": "hush"}'],
)
def test_secrets_in_json_that_is_given_as_text_are_hidden(text: str) -> None:
    settings = load({"engine": {"hf_overrides": text, "other": '{"a": 1}'}}, None)
    shown = show(settings, {"kv_transfer_config": text})

    assert "hush" not in shown
    assert yaml.safe_load(shown)["engine"]["other"] == '{"a": 1}'


def test_workers_divide_what_resumable_streams_may_keep() -> None:
    """A share that holds no stream would refuse every resumable one; that is an error at the start."""
    streams = {"max_bytes": 2**20, "max_total_bytes": 4 * 2**20}

    assert load({"server": {"workers": 4}, "streams": streams}, None).server.workers == 4

    output = complaint({"server": {"workers": 5}, "streams": streams})

    assert "server.workers" in output
    assert f"streams.max_total_bytes to {5 * 2**20}" in output


def test_settings_can_be_given_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are: what has changed in the environment since must not count."""
    settings = load({"server": {"workers": 2}, "engine": {"model": "m"}}, None)
    sent = pickle.dumps(settings)
    monkeypatch.setenv("SLUICE_SERVER__PORT", "9000")

    assert pickle.loads(sent) == settings


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.com", "http://localhost:3000", "app://obsidian.md", "chrome-extension://abc", "null"],
)
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    assert load({"server": {"cors_origins": [origin, "*"]}}, None).server.cors_origins == (origin, "*")


@pytest.mark.parametrize("origin", ["https://app.example.com/", "app.example.com", "https://", "", "https://a b"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    """It would match nothing, without a sign of the reason."""
    with pytest.raises(SettingsError, match=r"scheme://host"):
        load({"server": {"cors_origins": [origin]}}, None)


@pytest.mark.parametrize("host", ["https://llm.example.com", "llm.example.com:8000", "", "a b", "*example.com"])
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="without scheme and port"):
        load({"server": {"allowed_hosts": [host]}}, None)


def test_hosts_are_names_and_addresses() -> None:
    hosts = ("llm.example.com", "*.example.com", "*", "10.0.0.7", "2001:db8::1")

    assert load({"server": {"allowed_hosts": hosts}}, None).server.allowed_hosts == hosts
