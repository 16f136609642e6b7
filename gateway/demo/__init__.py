"""The demo model: a tiny Llama that ships with the package, and the script that trains it.

It is a toy with fewer than a million parameters, trained on the answers in `questions.yaml` and little else. With it
the real engine, tokenizer and chat template run and are tested on any machine within seconds and without a download. It
is not a useful model, and no other package may depend on its answers.

`python -m gateway.demo.train` creates `model/` anew. `questions.yaml` holds the training texts; `phrasing.py` and
`corpus.py` turn them into conversations; `tokenizer.py` and `encoding.py` turn those into tokens; only
`model/chat_template.jinja` is written by hand. For its tool calls and thoughts vLLM needs
`--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser deepseek_v3`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODEL_PATH", "SERVED_NAME"]

MODEL_PATH = Path(__file__).parent / "model"
SERVED_NAME = "sluice-demo"
