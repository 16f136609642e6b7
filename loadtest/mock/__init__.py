"""A mock upstream with known timing: an OpenAI-compatible server that follows a seeded plan and records the ground
truth.

Load generators are tested against it, without a GPU. It answers as its plan (`plan`) defines, spoils streams in every
way that a client should detect (`faults`), and records for each request when its last byte arrived and when each of its
tokens was handed to the kernel (`ground_truth`). Times are `perf_counter_ns`, which on Linux is one clock for all
processes of a machine. It also records its own lateness.

- `plan`: the plan; `faults`: the faults, and how a request names one
- `request_body`: parses and checks a request; `openai_chunks`: its documents; `script`: the actions of a stream, with
  the waits between them
- `timer`: a timer as precise as the kernel's; `engine`: fires events in order, in steps if the plan demands it
- `stream`, `json_response`: one request in progress, streamed or not; `slots`: running and waiting requests
- `connection`: HTTP/1.1 on one socket; `app`: the paths; `metrics`: `/metrics`; `ground_truth`: the record
- `server`: the process; `child`: the mock as a child process, for tests and benchmarks

    python -m loadtest.mock --port 9000 --plan plan.yaml --truth truth.jsonl

The way of a request: `connection` reads it, `request_body` checks it, `script` lays out its actions, `engine` fires the
`stream` when its next action is due, the stream frames the documents and passes them to its connections, and
`ground_truth` has the times.
"""
