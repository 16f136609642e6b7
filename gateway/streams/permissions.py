"""What takes more than a client's right."""

from __future__ import annotations

from gateway.domain import Caller
from gateway.errors import Forbidden


def check_operator(path: str, caller: Caller) -> None:
    """Raises Forbidden that says how to become one, if that caller is no operator."""
    if caller.operator:
        return
    if caller.owner is None:
        raise Forbidden(
            f"{path} runs this server and is off, because there are no API keys that would tell its operators from "
            "others. Give operators a key (`sluice key new --operator NAME`, server.api_keys_file), or set "
            "server.operator_endpoints."
        )
    raise Forbidden(f"{path} runs this server and takes an operator's key (`sluice key new --operator NAME`).")


__all__ = ["check_operator"]
