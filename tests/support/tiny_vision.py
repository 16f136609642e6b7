"""A model that takes pictures, made in a second: BLIP-2's parts, tiny, with random weights (vLLM's `--load-format
dummy` makes them) and the demo model's tokenizer. Its output has no meaning; how pictures reach it is vLLM's own way.
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
)


def make(folder: Path) -> Path:
    """Write the model into `folder`."""
    from transformers import (
        AutoTokenizer,
        Blip2Config,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessorPil,
        OPTConfig,
    )

    from gateway import demo

    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_PATH)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=_PATCH,
    )
    former = Blip2QFormerConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        encoder_hidden_size=32,
        vocab_size=2048,
    )
    text = OPTConfig(
        vocab_size=2048,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=former.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["Blip2ForConditionalGeneration"],
    )
    config.save_pretrained(folder)
    pictures = BlipImageProcessorPil(size={"height": _SIDE, "width": _SIDE})
    Blip2Processor(image_processor=pictures, tokenizer=tokenizer, num_query_tokens=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    generation = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    make(Path(sys.argv[1]))
