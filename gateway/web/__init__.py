"""The HTTP edge: the only room that knows FastAPI and ASGI.

- `guard`: first and last for every request: id, access, body size, errors, the log line.
- `access`: who may ask; `keys`: the API keys file; `sites`: names of this server and pages that may call it.
- `stream_tokens`: tokens with which a browser reads one stream.
- `content`: what a body says that it is.
- `routes`: our paths, and everything else to vLLM's app.
- `respond`: from a stream to the socket, watching for the client to leave.
- `paths`: what a path may look like, and what to say about one that leads nowhere.
- `pulse`: the one timer that finds silent and stuck connections.
- `docs`: the page at /docs, from the files in `swagger_ui/`.
- `middleware`: the operator's own, around everything.
- `management`: what is on the management port, and then not on the other.
- `health`: livez, readyz, metrics, version.
"""
