from __future__ import annotations

import sys
from types import ModuleType

import pytest

from gateway.engine.vllm.compat import imports

HOMES = ("vllm.entrypoints.launchers", "vllm.entrypoints.common")


def stub_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vllm", "vllm.entrypoints", *HOMES):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for home in HOMES:
        monkeypatch.delitem(sys.modules, f"{home}.cli_args", raising=False)


@pytest.mark.parametrize("home", HOMES)
def test_the_arguments_are_found_where_a_release_has_them(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_vllm(monkeypatch)
    found = ModuleType("cli_args")
    monkeypatch.setattr(sys.modules[home], "cli_args", found, raising=False)

    assert imports.cli_args() is found


def test_a_vllm_without_them_is_an_error_that_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_vllm(monkeypatch)

    with pytest.raises(ImportError, match=r"vllm\.entrypoints\.common"):
        imports.cli_args()
