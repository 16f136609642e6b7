"""HTTP: the only package that imports FastAPI and ASGI.

- `uvicorn_server`: the server with its listeners.
- `connection`: one connection; `request_limits`: its bounds on requests; `lingering_close`: how it ends.
- `write_coalescer`: flushes the direct writes of many connections together.
- `body_budget`: bytes of request bodies in memory; `socket_options`: options of a client's socket.
- `disconnect`: a scope that ends when the client disconnects.
- `middleware`: the first and last code of every request: id, access, body size, errors, the log line.
- `error_response`: an error as status, headers and body.
- `access`: whether a request is allowed; `origins`: names of this server, and web pages that may call it.
- `stream_tokens`: tokens with which a browser reads one stream.
- `content_type`: the declared type of a request body.
- `router`: chooses the app by path.
- `management`: streams by id, models, health, documents and the page at /docs (its files are in `swagger_ui/`).
- `management_port`: filters for a port of its own.
- `stream_endpoints`: requests that start a stream, or resume one.
- `sse_response`: a stream as events; `json_response`: a stream as one document.
- `engine_app`: vLLM's own app, behind admission; its messages, read ahead.
- `paths`: valid request paths, and advice for a path that does not exist.
- `custom_middleware`: the operator's own, around everything.
"""
