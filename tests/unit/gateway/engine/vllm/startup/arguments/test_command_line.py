"""vLLM's flags in a command line: what they become, and the sentences about wrong ones."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from gateway.engine.vllm.startup.arguments import catalog
from gateway.engine.vllm.startup.arguments.catalog import Catalog
from gateway.engine.vllm.startup.arguments.command_line import (
    _REMOVED_FLAGS,
    ResolvedFlags,
    apply_flags,
    resolve_flags,
    split_words,
)

OWN = {"--port": True, "--config": True, "--log-json": False, "--api-keys-file": True}


@pytest.fixture(params=["0.32", "0.33"])
def known(request: pytest.FixtureRequest) -> Catalog:
    return catalog.load_catalog(request.param)


def resolved_from(words: list[str], known: Catalog, own: dict[str, bool] | None = None) -> ResolvedFlags:
    # Another test in this process may have imported vLLM.
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
def test_vllms_flags_are_passed_on_unchanged(words: list[str], shown: dict[str, Any] | None, known: Catalog) -> None:
    resolved = resolved_from(words, known)

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
    resolved = resolved_from(words, known)

    assert resolved.problems == []
    assert resolved.settings == settings
    assert resolved.flags == []


@pytest.mark.parametrize(
    ("words", "alternative"),
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
def test_a_refused_flag_has_a_sentence_with_the_alternative(words: list[str], alternative: str, known: Catalog) -> None:
    if words[0] not in known.options and words[0].replace("_", "-").partition("=")[0] not in known.options:
        pytest.skip("this vLLM has no such flag")
    (problem,) = resolved_from(words, known).problems

    assert alternative in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    ("word", "nearest"),
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
def test_abbreviations_and_misspelled_flags_get_the_nearest_flag_and_never_a_value(
    word: str, nearest: str, form: str, known: Catalog
) -> None:
    resolved = resolved_from(form.format(word).split(), known)

    assert resolved.problems == [f"{word} is not a flag of `vllm serve` or `sluice serve`. Did you mean `{nearest}`?"]
    assert (resolved.flags, resolved.settings) == ([], {})


@pytest.mark.parametrize("word", ["-as", "-t", "-cc2", "--", "--nothing-like-it"])
def test_unknown_flags_are_refused(word: str, known: Catalog) -> None:
    assert len(resolved_from([word], known).problems) == 1


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
def test_missing_and_superfluous_values_are_problems(words: list[str], problem: str, known: Catalog) -> None:
    assert resolved_from(words, known).problems == [problem]


def test_own_options_and_the_model_are_not_vllms(known: Catalog) -> None:
    words = ["--port", "1", "model", "--dtype", "auto", "--log-json", "--config=x", "-tp", "2", "--seed", "-1"]
    found = split_words(words, OWN, known=known)

    assert found.own_words == ["--port", "1", "model", "--log-json", "--config=x"]
    assert apply_flags(found.given).flags == ["--dtype", "auto", "-tp", "2", "--seed", "-1"]


def test_unknown_flags_of_a_vllm_without_a_list_are_left_to_its_parser(known: Catalog) -> None:
    words = ["--brand-new", "a", "b", "--seed", "1"]

    assert resolved_from(words, replace(known, complete=False)).flags == words
    assert len(resolved_from(words, known).problems) == 1


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("--guided-decoding-backend=xgrammar", "Use --structured-outputs-config.backend."),
        ("--task", "Use --runner"),
        ("--override_pooler_config", "Use --pooler-config."),
    ],
)
def test_a_removed_flag_has_a_sentence_with_its_replacement(word: str, instead: str) -> None:
    (problem,) = resolved_from([word], catalog.load_catalog("0.32")).problems

    assert instead in problem


def test_the_replacements_of_removed_flags_exist(known: Catalog) -> None:
    for gone, instead in _REMOVED_FLAGS.items():
        assert gone not in known.options or gone == "--disable-log-requests"
        for option in re.findall(r"--[a-z-]+", instead):
            assert option in known.options


def test_help_after_the_dashes_names_the_documentation(known: Catalog) -> None:
    assert "docs/vllm-flags.md" in resolved_from(["--help"], known).problems[0]


def test_the_model_may_be_a_flag_too(known: Catalog) -> None:
    assert resolved_from(["--model", "m"], known).model == "m"
    assert resolve_flags(["--seed", "1", "--enable-log-requests"]).names == {"seed", "enable_log_requests"}
