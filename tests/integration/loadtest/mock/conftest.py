from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtest.mock.child import MockProcess, running_mock
from loadtest.mock.plan import MockPlan


@pytest.fixture(scope="package")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockProcess]:
    """A fast mock whose plan has no faults: requests name theirs."""
    with running_mock(tmp_path_factory.mktemp("mock"), MockPlan(ttft_ms=10, itl_ms=2)) as child:  # type: ignore[arg-type]
        yield child
