"""The life of one stream, from its request's body to its terminal event.

- `starter`: from a body to a running stream.
- `engine_app`: admission of requests that the engine's own app answers.
- `stream`: the writer, readers and timers of one request.
- `writer`: the sink that the engine fills; the only writer of a stream.
- `reader`: follows a stream; delivers to a connection that keeps up.
- `lifecycle`: the states and the allowed steps, as a table.
- `coalesce`: fewer, fuller parts for a late reader.
- `registry`: finds, lists, cancels and drains requests.
- `retention`: resumable streams that can still be read, within a number of bytes.
- `limits`: bounds on requests and on retained streams.
- `cancel_scope`: a scope that can be ended from outside.
- `tick_limiter`: how many requests begin in one turn of the event loop.
"""
