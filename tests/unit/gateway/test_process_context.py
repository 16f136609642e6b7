from __future__ import annotations

import asyncio
from typing import Any

from gateway.process_context import ProcessContext, SingleProcess


def test_a_single_process_has_everything_to_itself() -> None:
    context: ProcessContext = SingleProcess()
    app: Any = object()

    assert context.engine_host is None
    assert (context.max_restarts(3), context.share_of(100)) == (3, 100)
    assert context.wrap(app, has_request=lambda _: False, render_metrics=bytes, stall_timeout_s=1) is app
    assert asyncio.run(context.collect_metrics(lambda: b"page")) == b"page"


def test_ids_cannot_be_guessed() -> None:
    """96 random bits at the least: an id is all that is needed to read or cancel a stream where keys are off."""
    made = {SingleProcess().new_id() for _ in range(1000)}

    assert len(made) == 1000
    assert all(len(bytes.fromhex(one)) * 8 >= 96 for one in made)
