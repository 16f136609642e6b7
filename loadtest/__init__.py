"""Load tests and benchmarks for Sluice and other OpenAI-compatible servers.

`sluice-load` (`cli`) and `locust -f loadtest/locustfile.py` run the same scenarios. From outside to inside:

- `cli`, `locustfile`: the two ways in; `run`: Locust as a master with worker processes, without its command line
- `session`, `plan`: a run inside Locust: the master plans and adds up, workers do; `user`: what Locust sees of it
- `webui`: the tabs of Locust's web UI
- `scenario`: all that a run is told, with `arrivals` (when), `amounts` (how many), `behaviours` (how clients read),
  `slo` and `presets` (what is good enough); `library`: scenarios by name or file; `traces`: recorded loads
- `workload`, `prompts`: from a number and a seed to the requests of one conversation; `preflight`: what must be known
  of the server for that
- `host`: one worker's part: releases arrivals when they are due; `alarm`: wakes it on time
- `asking`: one request; `pool`, `connection`, `tls`, `arrival` (the kernel's time stamps): its bytes; `sse`, `reading`,
  `tokens`: what they say, and whether that is true; `record`: what became of it; `requestlog`: one line for each
- `tally`, `histogram`: the numbers as they grow; `lag`: how the generator itself does
- `results`, `outcome`, `result`: from tallies to the document of a run; `verdict`: whether it is good, with
  `intervals`: how sure a percentile is
- `scrape`, `exposition`: the server's own metrics beside it; `report`: pages for people
- `compare`, `comparison`, `bootstrap`: two runs against each other; `sweep`, `swept`: the highest rate that is good
- `words`: numbers and sentences that several of these write
- `mock`: an upstream with known timing and faults, against which the generator itself is tested
- `ownserver`: a run against a server that is started for it (`make load`)
- `bench`: benchmarks, of which each compares in one run and prints figures

One request, from its due time to the report:

    arrivals     it is due; all workers know the schedule, each takes every n-th of it
      host       woken by the kernel's timer; the request was made ready before; a greenlet of its own takes it
      asking     intended, started; a connection from the pool; sent
      connection the loop says that there are bytes: time taken, HTTP parsed
      sse        bytes to events, wherever they are cut
      reading    first content, every gap, usage, finish reason, [DONE]; tokens held against the oracle if there is one
      record     ended: how, and how many
      tally      counted by workload and tenant, and by second; Locust is told once
      session    the master merges what workers report, every three seconds
      outcome    judged, written, drawn

`workload`, `reading`, `arrivals`, `tally` and all that they import know no socket, no clock and no Locust. Importing
Locust patches the process, so only `user`, `session`, `locustfile`, `run` and `webui` do it. Times are
`perf_counter_ns`; between processes they travel as wall clock.
"""
