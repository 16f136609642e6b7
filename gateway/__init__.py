"""Sluice: a streaming inference server for LLMs, built on vLLM.

The packages, and who may import whom:

- `domain`, `errors`, `clock`, `bounded_text`, `hints`, `asgi`: plain data, the error tree, time, limits for foreign
  texts, hints at misspelled names, the messages of an ASGI request; everyone may.
- `offload`: work in daemon threads, which never delay an exit; `engine` and `streams` may.
- `settings`: one frozen tree; `app`, `engine_plan`, `server`, `preflight` and `cli` may. `settings_sections`: parts of
  it; `settings_errors`: sentences about wrong settings.
- `protocols`: from the engine's output to documents, per kind of client; pure.
- `transports`: `http` carries documents over HTTP connections; `common` is what every transport shares.
- `streams`: the life of one stream; transports may. Uses `admission`, `streamlog.base`, `engine.base`.
- `streamlog`: where events get their numbers and wait to be read.
- `admission`: which request may start.
- `engine`: the engine contract and its supervisor, an engine that several processes use (`shared`), when one counts as
  hung (`watchdog`, `os_processes`), which request engines die of (`poison_detector`), and the tokens of an engine
  without a model; `engine/vllm` is the only folder that imports vllm, and uses those but the supervisor.
- `metrics`: all metrics; `logs`: formatters and the loggers; `loop_lag`: the event loop's lag.
- `app`: the composition root; it takes a `process_context`: what differs in a process that serves alone and in one of
  several. `engine_plan`: from settings to the plan of the engine.
- `multiprocess`: several worker processes on one engine, and their parent, above `app`; unused in a server of one
  process.
- `server`: the process, with its sockets, signals and drain; `shutdown`: its end; `memory`: returns freed memory to
  the system. `cli`: the command; `preflight`: the checks of `sluice check`.
- `client`: for applications, not used by the server: an httpx transport that resumes streams. Only it imports httpx.
- `demo`: the model that ships with the package.

One request: `transports.http.connection` notes the time of its first byte, `transports.http.middleware` gives it an id
and checks its key, and `transports.http.router` finds the protocol of its path. `transports.http.stream_endpoints`
reads the body and calls `streams.starter`, which has the engine parse it, waits for slots at the `admission` gate, has
the engine render it and submits it. The engine's output handler calls the `streams.writer`, which has `protocols` make
documents, appends them to the `streamlog` for their numbers, and wakes the `streams.reader`;
`transports.common.delivery` takes all that is new and sends it at once, or the reader writes directly to a connection
that keeps up. `transports.common.accounting` reports the end. When the engine dies, `engine.supervisor` restarts it,
and `engine.vllm.core_client.restartable` sends the new one the requests that were in flight.
"""
