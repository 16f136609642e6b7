from __future__ import annotations

import pytest
from hypothesis import settings

# The machine that runs the tests is shared: a slow example is no failure. No database, so a checkout stays clean.
settings.register_profile("sluice", deadline=None, database=None)
# `pytest --hypothesis-profile=full`: ten times as many examples, and the model check at its full size.
settings.register_profile("full", deadline=None, database=None, max_examples=1000)
settings.load_profile("sluice")


# Its assertions are those of a test.
pytest.register_assert_rewrite("tests.support.stream_machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not beside the tests that look at it: options must be registered before subfolders are read.
    parser.addoption("--faults", choices=("ci", "full"), default="ci", help="size of the fault tests")
    parser.addoption("--helm", choices=("ci", "full"), default="ci", help="size of the chart's render matrix")
