from __future__ import annotations

import httpx

from gateway.transports.common.listeners import bind
from tests.support.threaded_server import ThreadedServer


def test_two_ports_have_two_apps() -> None:
    async def respond(text: bytes, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": text})  # type: ignore[operator]

    async def main(scope: object, receive: object, send: object) -> None:
        await respond(b"main", send)

    async def management(scope: object, receive: object, send: object) -> None:
        await respond(b"management", send)

    apart = bind("127.0.0.1", 0)
    port = apart.getsockname()[1]
    with ThreadedServer(main, bind("127.0.0.1", 0), management=(management, apart)) as live:
        assert httpx.get(f"http://127.0.0.1:{live.address[1]}/").text == "main"
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "management"
