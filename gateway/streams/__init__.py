"""The life of one stream, from the gate to its terminal event.

- `lifecycle`: the states and the allowed steps, as a table.
- `writer`: the sink that the engine fills; the only writer of a stream.
- `coalesce`: fewer, fuller pieces for a late reader.
- `reader`: waits, then takes all that is new.
- `stream`: writer, readers and timers of one request.
- `status`: the public state of a request.
- `retention`: finished resumable streams that can still be read.
- `cancel_scope`: a scope that can be ended from outside.
- `permissions`: actions that need an operator's key.
- `registry`: opens, finds, cancels and drains requests.
- `limits`: bounds on requests and on retained streams.
- `body_parsing`: request bodies are parsed beside the event loop, within a time limit.
- `tick_limiter`: how many requests begin in one turn of the event loop.
"""
