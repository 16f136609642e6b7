"""The output of some scenarios is what is checked in."""

from __future__ import annotations

import difflib

import pytest

from tests.charts.golden import GOLDEN, NAMES, path_of, rendered


@pytest.mark.parametrize("name", NAMES)
def test_as_checked_in(name: str) -> None:
    path = path_of(name)
    wanted = path.read_text(encoding="utf-8").splitlines()
    difference = list(difflib.unified_diff(wanted, rendered(name).splitlines(), path.name, "rendered", lineterm=""))

    assert difference == [], "if this is meant: python -m tests.charts.golden"


def test_nothing_else_is_checked_in() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {path_of(name).name for name in NAMES}
