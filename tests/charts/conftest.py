"""Counts what was rendered and checked, and prints it at the end; leaves out what only `--helm full` runs."""

from __future__ import annotations

from collections import Counter

import pytest

_COUNTS: Counter[str] = Counter()


@pytest.fixture
def stats() -> Counter[str]:
    """Counts renders, refusals, and objects by kind."""
    return _COUNTS


@pytest.fixture
def full_size() -> None:
    """For what only `--helm full` runs."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--helm") == "full":
        return
    left_out = [item for item in items if "full_size" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _COUNTS:
        return
    counts = {name: _COUNTS.pop(name, 0) for name in ("renders", "refusals")}
    terminalreporter.write_line(
        f"helm: {counts['renders']} renders, {sum(_COUNTS.values())} objects of {len(_COUNTS)} kinds checked, "
        f"{counts['refusals']} refused as they should be"
    )
