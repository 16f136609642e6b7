"""The program of `helm test`: stream one completion and check that it arrives in parts, not all at once at its end.

`stream_test.py URL SECONDS`, with the key in API_KEY if the server requires one. Only the standard library, because it
runs in the model's image.
"""

import http.client
import json
import os
import sys
import time
from urllib.parse import urlsplit


def ask(method: str, path: str, body: dict | None = None) -> http.client.HTTPResponse:
    """An open response; any other status ends the program with the server's answer."""
    address = urlsplit(sys.argv[1])
    connection = http.client.HTTPConnection(address.hostname, address.port or 80, timeout=float(sys.argv[2]))
    headers = {"Content-Type": "application/json"}
    if os.environ.get("API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['API_KEY']}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{method} {path}: {response.status} {response.read().decode(errors='replace')}")
    return response


def content_of(event: dict, model: str) -> str:
    """The text in one event."""
    if "error" in event:
        sys.exit(f"{model}: the stream ended with {event['error']}")
    deltas = [choice.get("delta", {}) for choice in event.get("choices", [])]
    return "".join(delta.get("content") or delta.get("reasoning") or "" for delta in deltas)


def main() -> None:
    model = json.load(ask("GET", "/v1/models"))["data"][0]["id"]
    question = {"role": "user", "content": "What happens if I disconnect?"}
    body = {"model": model, "stream": True, "max_tokens": 64, "messages": [question]}
    sent = time.monotonic()
    response = ask("POST", "/v1/chat/completions", body)
    # When text came, by reads: what one read gives has arrived together.
    seen: list[float] = []
    text, rest, done = "", b"", False
    while more := response.read1(65536):
        *lines, rest = (rest + more).split(b"\n")
        events = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
        done = done or b"[DONE]" in events
        if content := "".join(content_of(json.loads(event), model) for event in events if event != b"[DONE]"):
            seen.append(time.monotonic() - sent)
            text += content
    if not done:
        sys.exit(f"{model}: the stream ended without [DONE]; something on the way has cut it")
    if len(seen) < 2 or seen[-1] - seen[0] < 0.005:
        sys.exit(f"{model}: the text came all at once, after {seen} s; something on the way holds streams back")
    print(f"{model}: {len(text)} characters in {len(seen)} parts, from {seen[0]:.3f} s to {seen[-1]:.3f} s")


if __name__ == "__main__":
    main()
