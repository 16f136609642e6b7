from __future__ import annotations

from pathlib import Path

import pytest

from gateway.engine.vllm.compat import check
from gateway.engine.vllm.startup import launcher
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.errors import SettingsError


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[EnginePlan]:
    done: list[EnginePlan] = []

    def prepare_process(plan: EnginePlan) -> Path:
        done.append(plan)
        return tmp_path / "errors.log"

    monkeypatch.setattr(launcher, "prepare_process", prepare_process)
    return done


def test_a_wrong_key_is_found_before_vllm_is_imported(prepared: list[EnginePlan]) -> None:
    with pytest.raises(SettingsError, match="max_modle_len"):
        launcher.prepare(EnginePlan(engine={"max_modle_len": 5}))
    assert prepared == []


def test_a_vllm_that_does_not_fit_is_found_before_it_is_imported(
    prepared: list[EnginePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "installed_version", lambda: "0.99.0")
    monkeypatch.setattr(check, "problems", lambda: ["vLLM 0.99.0 has no `x`."])
    with pytest.raises(SettingsError, match=r"vLLM 0\.99\.0 has no"):
        launcher.prepare(EnginePlan(engine={}))
    assert prepared == []


def test_a_plan_that_may_start_prepares_the_process(prepared: list[EnginePlan], tmp_path: Path) -> None:
    errors = launcher.prepare(EnginePlan(engine={"model": "m"}))

    assert (errors.error_log, errors.model, len(prepared)) == (tmp_path / "errors.log", "m", 1)
