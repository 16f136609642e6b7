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

One request: `server` notes its first byte, `transports.http.middleware` gives it an id and checks its key,
`transports.http.responses` reads the body and opens a stream in `streams.registry`, which has the engine parse it,
waits at the `admission` gate, has it rendered and submits it. The engine's output handler calls `streams.writer`,
which wakes the `streams.reader` in `transports.http.responses`; that takes all that is new, encoded by
`protocols` and numbered by the `streamlog`, and sends once. When the engine dies, `engine.supervisor` has it
replaced, and `engine.vllm.core_client.restartable` sends the new one what was in flight.
"""
