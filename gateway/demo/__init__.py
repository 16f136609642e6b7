"""The demo model: a tiny Llama that ships with the package, and the script that made it.

It is a toy with fewer than a million parameters which knows the answers in `questions.yaml` and little
else. It is here so that the real engine, the real tokenizer and the real chat template can be run, watched
and tested on any machine within seconds and without a download. It must never be taken for a useful model,
and nothing else in the package may depend on what it says.

`python -m gateway.demo.train` makes `model/` anew. `questions.yaml` is what it is taught; `phrasing.py` and
`corpus.py` turn that into conversations; `tokenizer.py` and `encoding.py` turn those into numbers; only
`model/chat_template.jinja` is written by hand. For its tool calls and thoughts vLLM needs
`--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser deepseek_v3`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODEL_PATH", "SERVED_NAME"]

MODEL_PATH = Path(__file__).parent / "model"
SERVED_NAME = "sluice-demo"
