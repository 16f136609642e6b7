"""A worker process: the server of one process, whose gate and engine are the parent's.

- `process`: the entry point.
- `context`: the app's `ProcessContext`, and the channel to the parent.
- `engine_host_client`: the addresses and the death of the engine.
- `gate`: requests slots from the parent.
- `peer_client`: HTTP to another worker; `peer_proxy`: forwards the requests about its streams to it.
- `peer_metrics`: the app for other workers, and their metrics; `metrics_merge`: several workers' metrics as one page.
"""
