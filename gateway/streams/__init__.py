"""The life of one stream, from the gate to its terminal event.

- `lifecycle`: the states and what may happen in each, as a table.
- `producer`: the sink that the engine fills; the only writer of a stream.
- `follower`: the reader's side: wait, take all that is new.
- `registry`: who lives here; open, cancel.
"""
