"""vLLM's flags without vLLM: what is taken, what it becomes, and what is said about the rest."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from gateway.engine.vllm.startup.arguments import catalog, flag_rules, variables, vllm_parser
from gateway.engine.vllm.startup.arguments.catalog import Catalog
from gateway.engine.vllm.startup.arguments.command_line import (
    _REMOVED_FLAGS,
    ResolvedFlags,
    apply_flags,
    resolve_flags,
    split_words,
)
from gateway.engine.vllm.startup.arguments.flag_rules import RuleKind

OWN = {"--port": True, "--config": True, "--log-json": False, "--api-keys-file": True}


@pytest.fixture(params=["0.32", "0.33"])
def known(request: pytest.FixtureRequest) -> Catalog:
    return catalog.load_catalog(request.param)


def asked(words: list[str], known: Catalog, own: dict[str, bool] | None = None) -> ResolvedFlags:
    # Another test of this process may have imported it.
    was_there = "vllm" in sys.modules
    found = split_words(words, own or {}, known=known)
    resolved = apply_flags(found.given)
    resolved.problems[:0] = found.problems
    assert was_there or "vllm" not in sys.modules
    return resolved


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--max-model-len", "8192"], {"max_model_len": 8192}),
        (["--max_model_len=8192"], {"max_model_len": 8192}),
        (["-tp", "2"], {"tensor_parallel_size": 2}),
        (["-O3"], {"optimization_level": 3}),
        (["-O=3"], {"optimization_level": 3}),
        (["-O", "3"], {"optimization_level": 3}),
        (["-q", "awq"], {"quantization": "awq"}),
        (["-qawq"], {"quantization": "awq"}),
        (["-cc.mode=0"], {"compilation_config": {"mode": 0}}),
        (["--limit-mm-per-prompt.image", "1"], {"limit_mm_per_prompt": {"image": 1}}),
        (["--limit_mm_per_prompt.image=1"], {"limit_mm_per_prompt": {"image": 1}}),
        (
            ["--structured-outputs-config.backend", "xgrammar"],
            {"structured_outputs_config": {"backend": "xgrammar"}},
        ),
        (["--enable-auto-tool-choice", "--tool-call-parser", "hermes"], None),
        (["--served-model-name", "a", "b", "--dtype", "auto"], {"served_model_name": ["a", "b"], "dtype": "auto"}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--hf-token", "--seed", "1"], {"hf_token": True, "seed": 1}),
        (["--chat-template", "{% x %}"], {"chat_template": "{% x %}"}),
    ],
)
def test_vllms_own_spellings_go_to_vllm_word_by_word(
    words: list[str], shown: dict[str, Any] | None, known: Catalog
) -> None:
    resolved = asked(words, known)

    assert resolved.problems == []
    assert resolved.flags == words
    if shown is not None:
        assert resolved.shown == shown


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--port", "9000", "--host=::"], {"server": {"port": "9000", "host": "::"}}),
        (["-asc", "2"], {"server": {"workers": "2"}}),
        (["--uds", "/run/s"], {"server": {"uds": "/run/s"}}),
        (
            ["--ssl-certfile", "c", "--ssl_keyfile", "k", "--ssl-ca-certs", "a", "--ssl-cert-reqs", "2"],
            {
                "server": {
                    "tls": {
                        "cert_file": "c",
                        "key_file": "k",
                        "client_ca_file": "a",
                        "client_certificates": "required",
                    }
                }
            },
        ),
        (["--allowed-origins", '["https://a"]'], {"server": {"cors_origins": ["https://a"]}}),
        (["--middleware", "a.B", "--middleware=c.d"], {"server": {"middleware": ["a.B", "c.d"]}}),
        (["--shutdown-timeout", "5"], {"server": {"drain_timeout_s": "5"}}),
        (["--sse-keep-alive-interval", "5"], {"streams": {"keepalive_s": "5"}}),
        (["--uvicorn-log-level", "critical"], {"log": {"level": "error"}}),
        (["--log-level", "WARNING"], {"log": {"level": "warning"}}),
        (["--disable-uvicorn-access-log"], {"log": {"requests": False}}),
        (["--no-disable-uvicorn-access-log"], {"log": {"requests": True}}),
        (["--disable-access-log-for-endpoints", "/ping, /x"], {"log": {"quiet_paths": ["/ping", "/x"]}}),
        (["--enable-offline-docs", "--enable-ssl-refresh", "--enable-request-id-headers"], {}),
    ],
)
def test_flags_of_the_server_become_settings(words: list[str], settings: dict[str, Any], known: Catalog) -> None:
    resolved = asked(words, known)

    assert resolved.problems == []
    assert resolved.settings == settings
    assert resolved.flags == []


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["--api-key", "hush-1", "hush-2"], "server.api_keys_file"),
        (["--api_key=hush-1"], "sha256"),
        (["--config", "vllm.yaml"], "`engine:`"),
        (["--grpc"], "server.port"),
        (["--grpc-port", "1"], "server.port"),
        (["--headless"], "sluice engine MODEL"),
        (["--allowed-methods", '["GET"]'], "server.cors_origins"),
        (["--allow-credentials"], "server.cors_origins"),
        (["--h11-max-header-count", "9"], "server.max_header_bytes"),
        (["--data-parallel-supervisor-port", "1"], "server.workers"),
        (["--log-config-file", "x"], "log.json"),
        (["--max-num-queued-reqs", "9"], "admission.max_waiting"),
        (["--max-num-queued-tokens", "9"], "admission.max_waiting"),
        (["--no-enable-offline-docs"], "cannot be switched off"),
        (["--ssl-cert-reqs", "7"], "takes 0"),
        (["--allowed-origins", "https://a"], "takes a JSON list"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(words: list[str], way_out: str, known: Catalog) -> None:
    if words[0] not in known.options and words[0].replace("_", "-").partition("=")[0] not in known.options:
        pytest.skip("this vLLM has no such flag")
    (problem,) = asked(words, known).problems

    assert way_out in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--api-k", "--api-key"),
        ("--ssl-key", "--ssl-keyfile"),
        ("--ud", "--uds"),
        ("--hos", "--host"),
        ("--por", "--port"),
        ("--api-serv", "--api-server-count"),
        ("--allowed-o", "--allowed-origins"),
        ("--head", "--headless"),
        ("--max-modl-len", "--max-model-len"),
        ("--tool-cal-parser", "--tool-call-parser"),
        ("--max_num_seq", "--max-num-seqs"),
    ],
)
@pytest.mark.parametrize("form", ["{} hush", "{}=hush"])
def test_abbreviations_and_typing_errors_are_told_the_flag_and_never_a_value(
    word: str, meant: str, form: str, known: Catalog
) -> None:
    resolved = asked(form.format(word).split(), known)

    assert resolved.problems == [f"{word} is not a flag of `vllm serve` or `sluice serve`. Did you mean `{meant}`?"]
    assert (resolved.flags, resolved.settings) == ([], {})


@pytest.mark.parametrize("word", ["-as", "-t", "-cc2", "--", "--nothing-like-it"])
def test_nothing_unknown_is_let_through(word: str, known: Catalog) -> None:
    assert len(asked([word], known).problems) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--max-model-len"], "--max-model-len needs a value."),
        (["--max-model-len", "--seed", "1"], "--max-model-len needs a value."),
        (["--served-model-name"], "--served-model-name needs a value."),
        (["-cc.mode"], "-cc.mode needs a value."),
        (["--enforce-eager=true"], "--enforce-eager takes no value."),
    ],
)
def test_missing_and_superfluous_values_are_told(words: list[str], problem: str, known: Catalog) -> None:
    assert asked(words, known).problems == [problem]


def test_our_own_options_and_the_model_stay_ours(known: Catalog) -> None:
    words = ["--port", "1", "model", "--dtype", "auto", "--log-json", "--config=x", "-tp", "2", "--seed", "-1"]
    found = split_words(words, OWN, known=known)

    assert found.own_words == ["--port", "1", "model", "--log-json", "--config=x"]
    assert apply_flags(found.given).flags == ["--dtype", "auto", "-tp", "2", "--seed", "-1"]


def test_flags_of_a_vllm_without_a_list_are_left_to_its_own_parser(known: Catalog) -> None:
    words = ["--brand-new", "a", "b", "--seed", "1"]

    assert asked(words, replace(known, complete=False)).flags == words
    assert len(asked(words, known).problems) == 1


@pytest.mark.parametrize(
    ("version", "complete"), [("0.32.0", True), ("0.33.0", True), ("0.32.1", False), ("0.99.0", False), ("", False)]
)
def test_only_the_very_version_of_a_list_has_no_other_flags(
    version: str, complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "installed_version", lambda: version)
    found = catalog.installed_catalog.__wrapped__()

    assert found.complete is complete
    assert "--max-model-len" in found.options
    assert ("--watchdog-config" in found.options) == (not version.startswith("0.32"))


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("--guided-decoding-backend=xgrammar", "Use --structured-outputs-config.backend."),
        ("--task", "Use --runner"),
        ("--override_pooler_config", "Use --pooler-config."),
    ],
)
def test_flags_that_are_gone_are_told_what_took_their_place(word: str, instead: str) -> None:
    (problem,) = asked([word], catalog.load_catalog("0.32")).problems

    assert instead in problem


def test_the_places_of_flags_that_are_gone_exist(known: Catalog) -> None:
    for gone, instead in _REMOVED_FLAGS.items():
        assert gone not in known.options or gone == "--disable-log-requests"
        for option in re.findall(r"--[a-z-]+", instead):
            assert option in known.options


def test_help_after_the_dashes_tells_where_it_is(known: Catalog) -> None:
    assert "docs/vllm-flags.md" in asked(["--help"], known).problems[0]


def test_the_model_may_be_a_flag_too(known: Catalog) -> None:
    assert asked(["--model", "m"], known).model == "m"
    assert resolve_flags(["--seed", "1", "--enable-log-requests"]).names == {"seed", "enable_log_requests"}


@pytest.mark.parametrize("version", catalog.listed_versions())
def test_every_flag_has_exactly_one_disposition(version: str) -> None:
    tables = (flag_rules.SETTINGS, flag_rules.ALWAYS, flag_rules.REFUSED, flag_rules.PASSED)
    for name, flag in catalog.load_catalog(version).flags.items():
        found = flag_rules.find_rule(flag)
        assert found is not None, f"nobody has decided what becomes of {flag.usual_option} of vLLM {version}"
        assert sum(name in table for table in tables) <= 1, name
        if found.kind is RuleKind.SETTING:
            assert name in flag_rules.SETTINGS


def test_no_disposition_is_of_a_flag_that_does_not_exist() -> None:
    flags = {name for version in catalog.listed_versions() for name in catalog.load_catalog(version).flags}

    for table in (flag_rules.SETTINGS, flag_rules.ALWAYS, flag_rules.REFUSED, flag_rules.PASSED):
        assert set(table) <= flags


def test_settings_that_take_a_flags_place_exist() -> None:
    from gateway.settings import Settings

    for setting in [*(found.setting for found in flag_rules.SETTINGS.values()), *variables.SETTINGS.values()]:
        model: Any = Settings
        for part in setting.split("."):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            assert part in fields, setting
            kinds = [fields[part].annotation, *getattr(fields[part].annotation, "__args__", ())]
            model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)


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


def test_wrong_engine_settings_are_all_named() -> None:
    found = vllm_parser.engine_key_problems(
        {"port": 1, "max_modl_len": 1, "api-key": "hush", "seed": 1}, lambda _: "in f"
    )

    assert found[0] == "engine.port (in f) is not an engine setting here. Use server.port."
    assert found[1] == "engine.max_modl_len (in f) is not a vLLM engine argument. Did you mean `max_model_len`?"
    assert found[2].startswith("engine.api-key (in f) is not an engine setting here. ")
    assert len(found) == 3
    assert "hush" not in str(found)


def test_what_vllm_repeats_holds_no_secret() -> None:
    argv = ["--kv-transfer-config", '{"password": "hush"', "--seed", "x", '--hf-overrides={"api_key": "hush"']
    message = f"argument --kv-transfer-config: Value {argv[1]} cannot be converted; {argv[4]!r}: x"

    assert "hush" not in vllm_parser.without_secrets(message, argv)
    assert vllm_parser.without_secrets("argument --seed: invalid int value: 'x'", argv).endswith("'x'")


def test_variables_of_the_server_are_heard() -> None:
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
    assert color.startswith("The environment variable VLLM_LOGGING_COLOR does nothing. ")
    assert len(variables.problems({"VLLM_CONFIGURE_LOGGING": "0"})) == 1
    assert warning.endswith("Did you mean `VLLM_HTTP_TIMEOUT_KEEP_ALIVE`?")
