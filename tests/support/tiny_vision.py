"""A model that takes pictures, made in a second: PaliGemma's parts, tiny, with random weights (vLLM's `--load-format
dummy` makes them) and the demo model's tokenizer. What it says means nothing; how pictures reach it is vLLM's own way.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
_SIDE = 28
_PATCH = 14
FLAGS = (
    *("--load-format", "dummy", "--dtype", "float32", "--max-model-len", "256", "--served-model-name", "eyes"),
    *("--enforce-eager", "--distributed-executor-backend", "uni", "--kv-cache-memory-bytes", str(32 * 2**20)),
    *("--limit-mm-per-prompt", '{"image": 1}'),
)


def make(folder: Path) -> Path:
    """Write the model into `folder`."""
    from transformers import (
        AutoTokenizer,
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    from gateway import demo

    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_PATH)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    # vLLM looks it up by this name and puts it behind every prompt.
    tokenizer.add_tokens(["\n"])
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=_PATCH,
        projection_dim=64,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        num_image_tokens=(_SIDE // _PATCH) ** 2,
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vocab_size=2048,
        projection_dim=64,
        hidden_size=64,
        architectures=["PaliGemmaForConditionalGeneration"],
    )
    config.save_pretrained(folder)
    pictures = SiglipImageProcessorPil(size={"height": _SIDE, "width": _SIDE})
    pictures.image_seq_length = (_SIDE // _PATCH) ** 2
    PaliGemmaProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    generation = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    make(Path(sys.argv[1]))
