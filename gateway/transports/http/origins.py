"""The host names of this server, and the web pages that may call it. Pure.

A page can make its visitor's browser send requests to any address, including this machine's, so that a server without
keys is open to every page that its user visits. Headers that a page cannot forge identify such requests: `Origin` and
`Sec-Fetch-Site` name the page, and `Host` the name that was resolved to this address (DNS rebinding: the page's own
name is made to resolve to 127.0.0.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from gateway.errors import Forbidden

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """The headers of a request that identify its origin, unchanged; empty if absent."""

    hosts: tuple[str, ...] = ()
    origin: str = ""
    site: str = ""
    forwarded_host: str = ""


@dataclass(frozen=True, slots=True)
class Sites:
    """`hosts`: the names accepted in `Host`, without ports, beside those of this machine; None: any. `addresses`:
    whether every IP address is accepted. `origins`: the origins of pages that may call; `*` for all."""

    hosts: tuple[str, ...] | None
    addresses: bool
    origins: tuple[str, ...]

    @classmethod
    def of(cls, listens_on: str, is_loopback: bool, allowed_hosts: Sequence[str], origins: Sequence[str]) -> Sites:
        """The rules of a server that listens on that address. Only the operator can list the names of an address that
        other machines can reach, so there the names are checked only if the settings list some."""
        known = tuple(name.lower().rstrip(".") for name in allowed_hosts)
        if "*" in known or not (is_loopback or known):
            return cls(None, True, tuple(origins))
        return cls((*known, listens_on.lower()), not is_loopback, tuple(origins))

    def refusal(self, method: str, sender: RequestOrigin) -> Forbidden | None:
        """The error of a request that is refused, otherwise None."""
        if self.hosts is not None and not all(_is_own(one, self.hosts, self.addresses) for one in sender.hosts):
            return Forbidden(
                "This server is not called by the name in this request's Host header; its operator can add the name to "
                "server.allowed_hosts."
            )
        if self._is_foreign(method, sender):
            return Forbidden(
                "Web pages of this request's origin may not call this server; its operator can add the origin to "
                "server.cors_origins."
            )
        return None

    def _is_foreign(self, method: str, sender: RequestOrigin) -> bool:
        """Whether a page of another site caused this request."""
        if sender.site in ("same-origin", "none") or "*" in self.origins:
            return False
        if not sender.origin:
            # Links and images have no origin. Requests that change state have one in all but unusual browsers.
            return method not in _SAFE_METHODS and sender.site in ("cross-site", "same-site")
        if sender.origin in self.origins:
            return False
        scheme, _, place = sender.origin.lower().partition("://")
        # A page cannot set X-Forwarded-Host without a preflight, which has been refused. A proxy that replaces Host by
        # another name puts the original one there.
        called = [*sender.hosts, sender.forwarded_host.partition(",")[0].strip()]
        port = _DEFAULT_PORTS.get(scheme, "")
        return not place or place.removesuffix(port) not in {one.lower().removesuffix(port) for one in called}


# Clients use few names for a server, and parsing an address takes as long as all other code for a small request.
@lru_cache(1024)
def _is_own(host: str, hosts: tuple[str, ...], addresses: bool) -> bool:
    """Whether that `Host` is a name of this machine or one of `hosts`."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower().strip("[]").rstrip(".")
    try:
        address = ip_address(name)
    except ValueError:
        # A name without a dot belongs to this machine or its network: the public DNS has none, so no web page can have
        # such a name. The same holds for names below `localhost`, and for the name that containers have for their host.
        own = "." not in name or name.endswith(".localhost") or name == "host.docker.internal"
        return own or name in hosts or any(name.endswith(one[1:]) for one in hosts if one[:2] == "*.")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return addresses or address.is_loopback or address.is_unspecified or name in hosts
