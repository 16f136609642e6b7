from __future__ import annotations

import pytest

from gateway.engine.vllm.startup.arguments import catalog


@pytest.mark.parametrize(
    ("version", "complete"), [("0.32.0", True), ("0.33.0", True), ("0.32.1", False), ("0.99.0", False), ("", False)]
)
def test_a_list_is_complete_only_for_its_exact_version(
    version: str, complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "installed_version", lambda: version)
    found = catalog.installed_catalog.__wrapped__()

    assert found.complete is complete
    assert "--max-model-len" in found.options
    assert ("--watchdog-config" in found.options) == (not version.startswith("0.32"))
