"""The life of one stream, from the gate to its terminal event.

- `lifecycle`: the states and what may happen in each, as a table.
- `producer`: the sink that the engine fills; the only writer of a stream.
- `merging`: fewer, fuller pieces for a reader who comes late.
- `follower`: the reader's side: wait, take all that is new.
- `stream`: producer, readers and timers of one request.
- `status`: what clients are told about it.
- `shelf`: where finished resumable streams stay readable.
- `leash`: a scope that others can end.
- `rights`: what takes more than a client's right.
- `registry`: who lives here; open, find, cancel, drain.
- `limits`: bounds on what a client may ask for and on what is kept for it.
- `parsing`: request bodies are parsed beside the event loop, and not for ever.
- `turnstile`: so many requests begin in each turn of the event loop.
"""
