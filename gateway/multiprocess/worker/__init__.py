"""A worker process: the server of one process, whose gate and engine are the parent's.

- `process`: the entry point.
- `context`: a worker's side of everything that the parent owns.
- `engine_host_client`: the address of the engine that runs now.
- `gate`: asks the parent for slots.
- `peer_client`: HTTP to another worker; `peer_proxy`: sends it the requests that are about its streams.
- `peer_metrics`: metrics that workers ask each other for; `metrics_merge`: several workers' metrics as one page.
"""
