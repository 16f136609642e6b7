"""Which names a server answers under, and which pages may call it."""

from __future__ import annotations

import pytest

from gateway.transports.http.origins import RequestOrigin, Sites

LOCAL = Sites.of("127.0.0.1", True, (), ())
OPEN = Sites.of("0.0.0.0", False, (), ())
NAMED = Sites.of("0.0.0.0", False, ("llm.example.com", "*.pages.example", "10.0.0.7"), ())


def called(sites: Sites, *hosts: str) -> bool:
    """Whether a request by that name is answered."""
    return sites.refusal("POST", RequestOrigin(hosts=hosts)) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LocalHost:8000",
        "localhost.",
        "app.localhost:8000",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:8000",
        "[::ffff:127.0.0.1]:8000",
        "0.0.0.0:8000",
        "host.docker.internal:8000",
        "sluice:8000",
    ],
)
def test_a_server_on_loopback_accepts_this_machines_names(host: str) -> None:
    assert called(LOCAL, host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "EVIL.example.",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost/evil.example",
        "localhost evil.example",
        "localhost,evil.example",
        "[::1].evil.example",
        "[evil.example]",
        "::1",
        "[2001:db8::1]",
        "[::ffff:10.0.0.1]",
        "192.168.1.5:8000",
        "evil.docker.internal",
        "",
        ":8000",
        "\u0131ocalhost.example",
    ],
)
def test_a_public_name_that_may_resolve_to_this_machine_is_refused(host: str) -> None:
    """DNS rebinding: to the browser, the page that it was sent by is this server's own."""
    assert not called(LOCAL, host)
    assert called(OPEN, host), "elsewhere only the operator can list the names"


def test_a_second_host_header_must_be_valid_too() -> None:
    assert not called(LOCAL, "localhost", "evil.example")
    assert not called(LOCAL, "evil.example", "localhost")
    assert called(LOCAL), "HTTP/1.0 has none, and browsers do not speak it"


def test_the_operator_can_allow_other_names() -> None:
    for host in ("llm.example.com", "LLM.example.com:443", "a.pages.example", "a.b.pages.example:1", "10.0.0.7"):
        assert called(NAMED, host)
    for host in ("example.com", "xllm.example.com", "pages.example", "apages.example", "llm.example.com.evil.example"):
        assert not called(NAMED, host)


def test_addresses_are_accepted_where_names_are_checked_beyond_loopback() -> None:
    """Kubelets and scrapers call pods by their addresses, and an address cannot be pointed elsewhere."""
    assert called(NAMED, "10.11.12.13:8000")
    assert called(NAMED, "localhost")
    assert called(NAMED, "[2001:db8::1]:8000")


def test_a_loopback_server_may_have_other_names() -> None:
    assert called(Sites.of("127.0.0.1", True, ("llm.example.com",), ()), "llm.example.com")
    assert called(Sites.of("127.0.0.1", True, ("*",), ()), "evil.example")
    assert called(Sites.of("box.example", True, (), ()), "box.example:8000"), "the configured host is one"


def foreign(sites: Sites, origin: str, *, method: str = "POST", site: str = "", **more: str) -> bool:
    """Whether a page of that origin is refused."""
    sender = RequestOrigin(hosts=(more.pop("host", "localhost:8000"),), origin=origin, site=site, **more)
    return sites.refusal(method, sender) is not None


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:3000",
        "http://localhost",
        "http://localhost:8000.evil.example",
        "http://evil.example:8000",
        "null",
        "file://",
        "localhost:8000",
        "http://localhost:8000, https://evil.example",
        "chrome-extension://localhost:8001",
    ],
)
def test_pages_of_other_origins_may_not_call(origin: str, method: str) -> None:
    assert foreign(LOCAL, origin, method=method)
    assert foreign(OPEN, origin, method=method)
    assert not foreign(Sites.of("127.0.0.1", True, (), ("*",)), origin, method=method)


def test_the_servers_own_pages_may_call() -> None:
    assert not foreign(LOCAL, "http://localhost:8000")
    assert not foreign(OPEN, "https://llm.example.com", host="LLM.example.com")
    assert not foreign(OPEN, "https://llm.example.com", host="llm.example.com:443")
    assert not foreign(OPEN, "https://llm.example.com:443", host="llm.example.com")


def test_a_page_behind_a_proxy_that_changes_host_is_not_foreign() -> None:
    """Such as nginx without `proxy_set_header Host`, or a development server that forwards /v1."""
    own = "https://app.example.com"
    assert foreign(OPEN, own, host="upstream:8000")
    assert not foreign(OPEN, own, host="upstream:8000", forwarded_host="app.example.com")
    assert not foreign(OPEN, own, host="upstream:8000", forwarded_host="app.example.com, inner")
    assert not foreign(OPEN, own, host="upstream:8000", site="same-origin")
    assert foreign(OPEN, own, host="upstream:8000", site="same-site")
    assert foreign(OPEN, own, host="upstream:8000", site="same-origin, cross-site")


def test_origins_that_are_named_may_call() -> None:
    some = Sites.of("127.0.0.1", True, (), ("https://app.example.com", "app://obsidian.md", "null"))
    for origin in ("https://app.example.com", "app://obsidian.md", "null"):
        assert not foreign(some, origin)
    for origin in ("http://app.example.com", "https://app.example.com:8443", "https://evil.example"):
        assert foreign(some, origin)


def test_a_request_without_an_origin_is_no_page() -> None:
    for site in ("", "none", "same-origin"):
        assert not foreign(LOCAL, "", site=site)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_browser_that_hides_the_origin_still_sends_the_site(site: str) -> None:
    assert foreign(LOCAL, "", site=site)
    assert foreign(LOCAL, "", site=site, method="DELETE")
    # A link to the documentation.
    assert not foreign(LOCAL, "", site=site, method="GET")


def test_a_refusal_names_the_setting() -> None:
    host = LOCAL.refusal("GET", RequestOrigin(hosts=("evil.example",)))
    page = LOCAL.refusal("POST", RequestOrigin(hosts=("localhost",), origin="https://evil.example"))

    assert host is not None
    assert page is not None
    assert (host.status, page.status) == (403, 403)
    assert "server.allowed_hosts" in host.message
    assert "server.cors_origins" in page.message
    assert "evil" not in host.message + page.message, "what a client sends is not echoed"
