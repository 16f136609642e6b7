from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtest.mock.child import Child, running
from loadtest.mock.plan import Plan


@pytest.fixture(scope="package")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A quick one without faults of its own: requests ask for theirs."""
    with running(tmp_path_factory.mktemp("mock"), Plan(ttft_ms=10, itl_ms=2)) as child:  # type: ignore[arg-type]
        yield child
