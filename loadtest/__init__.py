"""Load tests and benchmarks for Sluice and other OpenAI-compatible servers.

`sluice-load` (`cli`) and `locust -f loadtest/locustfile.py` run the same scenarios. Every package imports only packages
above it in this list, and what its line names:

- `formatting`: numbers as text; `timerfd`: the kernel's timers
- `measure`: the numbers of a run: `record` of one request, `histogram`, `aggregates` (by workload, tenant and second),
  `result` (the document of a run), `quantile_ci` (confidence intervals of quantiles)
- `scenario`: the configuration of a run: `model` and `loader`, with `arrivals` (when), `distributions`, `behaviours` of
  clients, `slo` (limits), `traces` (recorded loads); `workload` generates its requests, `prompt_text` their prompts
- `client`: sends one request: `request_runner`, `pool`, `connection`, `tls`, `kernel_timestamps`; parses and checks the
  response: `sse`, `response`, `token_check`
- `generator`: one worker's part of a run: `load_worker` starts requests when they are due, `precise_timer` wakes it,
  `health` measures it, `request_log` writes a line for each request; `preflight` reads the server's properties
- `server_metrics`: the server's own metrics beside the client's numbers: `scraper`, `prometheus_text`
- `report`: results as pages and summaries
- `analysis`: `verdict` on a run; `compare`, `comparison`, `bootstrap`: two runs; `sweep`, `sweep_result`: the highest
  rate within the SLO. Uses `report` for its pages
- `runner`: a run inside Locust: `session` and `run_plan` (master and workers), `locust_users`, `summarise` and `finish`
  (from aggregates to the result), `webui` (tabs of Locust's), `run` (Locust without its command line)
- `mock`: an upstream with known timing and faults, against which the generator is tested. Uses `measure`, `scenario`
- `cli`, `locustfile`, `local_server` (`make load`): the entry points
- `bench`: benchmarks

`scenarios/` holds the scenarios that ship with the package. One request, from its due time to the report:

    arrivals        the request is due; all workers compute the schedule, each takes every n-th arrival
    load_worker     the kernel's timer wakes it; the request was prepared before; a greenlet of its own runs it
    request_runner  records intended and started; takes a connection from the pool; sends
    connection      the loop reports bytes: reads them with their arrival time, parses HTTP
    sse             from bytes to events, wherever the bytes are split
    response        first content, every gap, usage, finish reason, [DONE]; compares tokens if the engine is synthetic
    record          the end: outcome and counts
    aggregates      counted by workload and tenant, and by second; reported to Locust once
    session         the master merges the workers' reports, every three seconds
    finish          verdict, files, report

`measure`, `scenario`, and `sse`, `response`, `token_check` of `client` use no socket, no clock and no Locust.
Importing Locust patches the process, so only `runner` (except `run_plan` and `summarise`) and `locustfile` do it. Times
are `perf_counter_ns`; between processes they are wall clock.
"""
