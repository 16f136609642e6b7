from __future__ import annotations

import sys
from types import ModuleType

import pytest

from gateway.engine.vllm.compat import imports


def test_a_name_is_found_in_the_first_module_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = ModuleType("made_up_newer")
    newer.thing = 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_older", ModuleType("made_up_older"))
    monkeypatch.setitem(sys.modules, "made_up_newer", newer)
    monkeypatch.setitem(imports._HOMES, "thing", ("made_up_gone", "made_up_older", "made_up_newer"))

    assert imports.find("thing") == 7


def test_a_name_that_no_module_has_is_an_error_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(imports._HOMES, "thing", ("made_up_gone",))

    with pytest.raises(ImportError, match="no thing in any of made_up_gone"):
        imports.find("thing")
