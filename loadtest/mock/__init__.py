"""An upstream whose timing is known: an OpenAI-compatible server that speaks by a seeded plan and keeps the truth.

Load generators are checked against it, and CI needs no GPU. It says what a plan (`plan`) tells it to, when the plan
tells it to, spoils streams in every way that a client should notice (`faults`), and writes down for each request when
its last byte arrived and when each of its tokens was handed to the kernel (`truth`): `perf_counter_ns`, which on Linux
is one clock for all processes of a machine. It also knows how late it was itself.

- `draw`: a distribution as a plan names it; `plan`: the plan; `faults`: what goes wrong, and how a request asks for it
- `asked`: a request, read and checked; `chunks`: its documents; `script`: what is said, after which waits
- `timer`: a timer of the kernel's precision; `engine`: what is due, in order, and in steps if the plan says so
- `stream`, `whole`: one request on its way, streamed or not; `turns`: who is at work, who waits
- `connection`: HTTP/1.1 on one socket; `app`: the paths; `gauges`: `/metrics`; `truth`: what happened
- `server`: the process; `child`: the mock as a child process, for tests and benchmarks

    python -m loadtest.mock --port 9000 --plan plan.yaml --truth truth.jsonl

The way of a request: `connection` reads it, `asked` checks it, `script` is laid out, `engine` calls the `stream` when
its next act is due, the stream frames it and hands it to its connections, and `truth` has the stamps.
"""
