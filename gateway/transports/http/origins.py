"""Which names this server answers under, and which web pages may call it. Pure.

A browser sends requests wherever a page tells it to, to this machine's own addresses too, so that a server which asks
for no key is open to every page that its user visits. What a browser cannot be made to lie about tells such requests
apart: `Origin` and `Sec-Fetch-Site` name the page, and `Host` the name under which it has found this address (DNS
rebinding: a page's own name that suddenly means 127.0.0.1).
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
    """What a request's headers tell about where it comes from, as they came; empty where they are silent."""

    hosts: tuple[str, ...] = ()
    origin: str = ""
    site: str = ""
    forwarded_host: str = ""


@dataclass(frozen=True, slots=True)
class Sites:
    """`hosts`: the names in `Host`, without ports, that are answered beside those of this machine; None: any.
    `addresses`: whether any IP address is one, too. `origins`: the pages that may call; `*` for all."""

    hosts: tuple[str, ...] | None
    addresses: bool
    origins: tuple[str, ...]

    @classmethod
    def of(cls, listens_on: str, is_loopback: bool, allowed_hosts: Sequence[str], origins: Sequence[str]) -> Sites:
        """The rule of a server that listens at that address. Of an address that others can reach too, only its
        operator knows the names, so there they are checked where he has named some."""
        known = tuple(name.lower().rstrip(".") for name in allowed_hosts)
        if "*" in known or not (is_loopback or known):
            return cls(None, True, tuple(origins))
        return cls((*known, listens_on.lower()), not is_loopback, tuple(origins))

    def refusal(self, method: str, sender: RequestOrigin) -> Forbidden | None:
        """Why a request is not answered, None if it is."""
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
        """Whether a page of another site has made its visitor's browser send this."""
        if sender.site in ("same-origin", "none") or "*" in self.origins:
            return False
        if not sender.origin:
            # Links and images have none; what changes something has one, unless the browser is odd.
            return method not in _SAFE_METHODS and sender.site in ("cross-site", "same-site")
        if sender.origin in self.origins:
            return False
        scheme, _, place = sender.origin.lower().partition("://")
        # A page cannot set X-Forwarded-Host without a preflight, which has been refused; a proxy that has put its own
        # name into Host tells there how it is called itself.
        called = [*sender.hosts, sender.forwarded_host.partition(",")[0].strip()]
        port = _DEFAULT_PORTS.get(scheme, "")
        return not place or place.removesuffix(port) not in {one.lower().removesuffix(port) for one in called}


# Clients have few names for a server, and parsing an address takes as long as a small request's whole way here.
@lru_cache(1024)
def _is_own(host: str, hosts: tuple[str, ...], addresses: bool) -> bool:
    """Whether that `Host` is a name of this machine, or one of `hosts`."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower().strip("[]").rstrip(".")
    try:
        address = ip_address(name)
    except ValueError:
        # A name without a dot is one of this machine or of its network: the public DNS has none, so no page of the web
        # can be one. Neither can those below `localhost`, nor the one by which containers call their host.
        own = "." not in name or name.endswith(".localhost") or name == "host.docker.internal"
        return own or name in hosts or any(name.endswith(one[1:]) for one in hosts if one[:2] == "*.")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return addresses or address.is_loopback or address.is_unspecified or name in hosts


__all__ = ["RequestOrigin", "Sites"]
