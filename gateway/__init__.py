"""Sluice: a streaming inference server for LLMs, built on vLLM.

The packages, and who may import whom:

- `domain`, `errors`, `clock`, `bounded_text`, `asgi`: plain data, the error tree, time, texts of foreign length, the
  messages of an ASGI request; everyone may.
- `offload`: work in threads for which no exit waits; `engine` and `streams` may.
- `settings`: one frozen tree; `app`, `engine_plan`, `server`, `preflight` and `cli` may. `settings_sections`: parts of
  it; `settings_errors`: sentences about wrong ones.
- `protocols`: from the engine's output to documents, per kind of client; pure.
- `transports`: `http` carries documents over HTTP connections; `common` is what every transport shares.
- `streams`: the life of one stream; transports may. Uses `admission`, `streamlog.base`, `engine.base`.
- `streamlog`: where events get their numbers and wait to be read.
- `admission`: which request may start.
- `engine`: the engine contract and its supervisor, an engine that several processes use (`shared`), when one counts as
  hung (`watchdog`, `os_processes`), which request engines die of (`poison_detector`), and the tokens of an engine
  without a model; `engine/vllm` is the only folder that imports vllm, and uses those but the supervisor.
- `metrics`: every metric; `logs`: every log line; `loop_lag`: how late the event loop is.
- `app`: the composition root; it takes a `process_context`: what differs in a process that serves alone and in one of
  several. `engine_plan`: from settings to the engine that they ask for.
- `multiprocess`: several worker processes on one engine, and their parent, above `app`; unused in a server of one
  process.
- `server`: the process; `shutdown`: its end; `memory`: freed memory back to the system.
  `cli`: the command; `preflight`: the checks of `sluice check`.
- `client`: for applications, not the server: an httpx transport that resumes streams. The only one to import httpx.
- `demo`: the model that ships with the package.

One request: `server` notes its first byte, `transports.http.middleware` gives it an id and checks its key, and
`transports.http.router` finds the protocol of its path. `transports.http.stream_endpoints` reads the body and calls
`streams.starter`, which has the engine parse it, waits for slots at the `admission` gate, has the engine render it and
submits it. The engine's output handler calls the `streams.writer`, which has `protocols` make documents, appends them
to the `streamlog` for their numbers, and wakes the `streams.reader`; `transports.common.delivery` takes all that is
new and sends it at once, or the reader writes directly to a connection that keeps up. `transports.common.accounting`
reports the end. When the engine dies, `engine.supervisor` restarts it, and `engine.vllm.core_client.restartable` sends
the new one the requests that were in flight.
"""
