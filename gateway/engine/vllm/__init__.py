"""vLLM's AsyncLLM as our engine: the only folder that imports vllm.

- `launch`: settings to vLLM's arguments to a running AsyncLLM; `another`: another engine for it.
- `client`: the `Engine` protocol over it.
- `lanes`: which requests are plain enough for our own chunks.
- `core`: vLLM's client of the engine process, made to outlive it; `continuation`: which requests go on, and how.
- `pull`: how the engine's outputs are received; `steps`: the output step, from them to our sink; `statistics`: vLLM's
  own metrics, written less often.
- `prompts`: where the work on a prompt is done: of a long one aside, of a short one on the event loop.
- `threads`: vLLM's threads, none of which holds the process at its exit.
- `answers`: whole answers with log probabilities, made some tokens at a time.
- `fallback`: vLLM's own HTTP app and the proxy it runs on.
- `contract`: holds that app to our HTTP contract; `trust`: removes what it should not believe of clients.
- `intake`: request bodies for that app, checked before it reads them; `invocations`: those of SageMaker's endpoint.
- `documents`: bodies within the limits; `requests`: those of our two endpoints; `validation`: pydantic's models at a
  bounded cost.
- `stream_errors`: what it writes into streams that fail; `expected_errors`: what it need not log.
- `grammars/`: the grammars that requests bring, checked in a process aside.
- `optional_fields`: what a body says that means nothing; `endings`: a late reader's last output, in two.
- `failures`: vLLM's errors as ours; `words`: why an engine could not start.
- `sharing`: one engine with several clients; `cores`: its processes, for the parent; `tenant`: a worker's client.
- `child`: what runs inside the engine process.
- `synthetic`: an executor without a model; `pace`: how long its steps take, and which goes wrong.
- `versions`: import shims between vLLM releases.
"""
