"""Sluice: a streaming inference server for LLMs, built on vLLM.

The rooms, and who may import whom:

- `model`, `errors`, `texts`, `clock`: nouns, failures, words that others choose, time; everyone may.
- `offload`: work in threads that nobody waits for at exit; `engine` and `streams` may.
- `settings`: one frozen tree; `app`, `server`, `preflight` and `cli` may. `sections`: parts of it;
  `settings_errors`: sentences about wrong ones.
- `wire`: bytes and nouns; `web` may.
- `streams`: the life of one stream; `web` may. Uses `admission`, `streamlog.base`, `engine.base`.
- `streamlog`: where events get their numbers and wait to be read.
- `admission`: who may start now.
- `engine`: the protocol and its supervisor, when an engine counts as hung (`watchdog`, `processes`), which request
  engines die of (`suspicion`), and what an engine without a model says; `engine/vllm` is the only folder that imports
  vllm, and uses those but the supervisor.
- `web`: the HTTP edge.
- `metrics`: every metric; `logs`: every log line; `looplag`: how late the event loop is.
- `workers`: several such processes on one engine, and their parent; nothing of it runs where there is only one.
- `app`: joins the rooms. `server`: the process; `listeners`: its listening sockets; `tls`: its certificates;
  `shutdown`: its end; `memory`: what it gives back. `protocol`: one connection, on `incoming` (what a client may
  send), `bodies` and `closing`; `sockets`: the options of its socket. `cli`: the command;
  `preflight`: what its `check` looks at.
- `client`: for applications, not the server: an httpx transport that resumes streams. The only one to import httpx.
- `demo`: the model that ships with the package.

One request: `server` notes its first byte, `web.guard` gives it an id and checks its key, `web.respond` reads the
body and opens a stream in `streams.registry`, which asks the engine to parse it, waits at the `admission` gate, has
it rendered and submits it. The engine's output handler tells `streams.producer`, which wakes the `streams.follower`
in `web.respond`; that takes all that is new, encoded by `wire` and numbered by the `streamlog`, and sends once.
When the engine dies, `engine.supervisor` has it replaced, and `engine/vllm/core` sends it what was in flight.
"""
