from __future__ import annotations

import pytest

from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter


@pytest.mark.parametrize("trust", [False, True])
def test_fields_and_headers_that_steer_the_scheduler_are_removed(trust: bool) -> None:
    field_filter = UntrustedFieldFilter(trust=trust)
    document = {"input": "x", "priority": -9, "cache_salt": "s"}

    assert field_filter.remove_fields(document) is not trust
    assert document == ({"input": "x", "priority": -9, "cache_salt": "s"} if trust else {"input": "x"})

    headers = [(b"x-vllm-priority", b"1"), (b"accept", b"*/*")]
    assert field_filter.filter_raw_headers(headers) == (headers if trust else headers[1:])
