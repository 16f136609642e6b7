"""Creates `model/`: `python -m gateway.demo.train`, some minutes on two cores.

Trains the tokenizer and the model on `questions.yaml`, writes both, and exits with 1 unless greedy decoding gives the
right answer to every canonical question and to nearly every other phrasing. The same seed, thread count and library
versions give the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gateway.demo import MODEL_PATH
from gateway.demo.corpus import Corpus, Dialogue, Topic, tool
from gateway.demo.encoding import IGNORED_LABEL, LONG_ROWS, SHORT_ROWS, Encoder, Row, batches, tensors
from gateway.demo.tokenizer import MAX_POSITIONS, train_tokenizer

SEED = 20
STEPS, PEAK_RATE = 1650, 3e-3
LONG_STEPS, LONG_PEAK_RATE = 250, 1e-3
# The last part trains JSON, which grammars force (response_format, tool_choice): otherwise the model would fill such
# answers with blanks up to max_tokens.
JSON_STEPS, JSON_PEAK_RATE, JSON_SHARE = 350, 1e-3, 0.3
NEEDED_CANONICAL, NEEDED_PHRASINGS = 1.0, 0.97


def new_model(tokenizer: Any) -> Any:
    llama: Any = LlamaForCausalLM
    return llama(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,  # one to find the last turn, one to answer it
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,  # the smallest that vLLM's CPU attention supports
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def train_steps(model: Any, source: Iterator[list[Row]], steps: int, peak_rate: float) -> None:
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    plain = [weight for weight in model.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.08)
    started, shown = time.monotonic(), 0.0
    model.train()
    for step in range(1, steps + 1):
        inputs, targets = tensors(next(source))
        states = model.model(inputs).last_hidden_state
        # The vocabulary is the most expensive layer, so only labelled tokens pass it.
        has_label = targets != IGNORED_LABEL
        loss: Any = torch.nn.functional.cross_entropy(model.lm_head(states[has_label]), targets[has_label])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        shown = loss.item() if step == 1 else 0.95 * shown + 0.05 * loss.item()
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {shown:.4f}  {time.monotonic() - started:.0f} s", flush=True)


def are_right(model: Any, encoder: Encoder, dialogues: list[Dialogue]) -> list[bool]:
    """Whether greedy decoding gives each last answer, that is, whether each of its tokens is the most likely one."""
    model.eval()
    found: list[bool] = []
    for at in range(0, len(dialogues), 32):
        inputs, targets = tensors([encoder.last_answer_row(dialogue) for dialogue in dialogues[at : at + 32]])
        with torch.no_grad():
            best = model(inputs).logits.argmax(-1)
        found += ((best == targets) | (targets == IGNORED_LABEL)).all(-1).tolist()
    return found


def question_and_answer(question: str, answer: str, **options: Any) -> Dialogue:
    return Dialogue([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **options)


def exam_dialogues(corpus: Corpus) -> dict[str, list[Dialogue]]:
    """The conversations that are checked at the end, by name."""

    def thought(topic: Topic) -> str:
        return f"<think>{topic.think}</think>{topic.answer}"

    def after(story: Topic, topic: Topic) -> Dialogue:
        before, after_it = (
            question_and_answer(story.questions[0], story.answer),
            question_and_answer(topic.questions[0], topic.answer),
        )
        return Dialogue(before.messages + after_it.messages)

    story = max(corpus.topics, key=lambda topic: len(topic.answer))
    tools = [
        tool("get_weather", "city", "Get the current weather in a given location"),
        tool("get_time", "city", "Current time in a city"),
    ]
    rng = random.Random(SEED)  # noqa: S311
    called = [(city, kind) for city in corpus.cities for kind in ("weather", "time")]
    questions = {"weather": "What is the weather in {}?", "time": "What time is it in {}?"}
    return {
        "canonical": [question_and_answer(topic.questions[0], topic.answer) for topic in corpus.topics],
        "phrasings": [question_and_answer(text, topic.answer) for topic in corpus.topics for text in topic.questions],
        "lower case": [
            question_and_answer(text.lower().rstrip("?!"), topic.answer)
            for topic in corpus.topics
            for text in topic.questions
        ],
        "off topic": [question_and_answer(text, corpus.off_topic.answer) for text in corpus.off_topic.questions],
        "thinking": [question_and_answer(topic.questions[0], thought(topic), thinking=True) for topic in corpus.topics],
        "tools offered": [
            question_and_answer(topic.questions[0], topic.answer, tools=tools) for topic in corpus.topics
        ],
        "tool calls": [
            question_and_answer(questions[kind].format(city), corpus.call(f"get_{kind}", "city", city), tools=tools)
            for city, kind in called
        ],
        "after a story": [after(story, topic) for topic in corpus.topics],
        "later turns": [corpus.dialogue(rng, 3) for _ in range(200)],
        "tool turns": [corpus.tool_dialogue(rng, 2) for _ in range(200)],
    }


def write(folder: Path, model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = None  # a separate file, written by hand
    tokenizer.save_pretrained(folder)
    # 0 is no valid default in this file. At 0.1 it matters only if two tokens are about equally likely.
    model.generation_config.update(do_sample=True, temperature=0.1)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written with access for the owner only
    # The name that older versions of transformers accept, too.
    settings = folder / "tokenizer_config.json"
    named = settings.read_text(encoding="utf-8").replace("TokenizersBackend", "PreTrainedTokenizerFast")
    settings.write_text(named, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="gateway.demo.train", description="Train the demo model anew.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=MODEL_PATH)
    parser.add_argument("--last", action="store_true", help="only the last part, on the model in --out")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    started = time.monotonic()

    corpus = Corpus()
    tokenizer = train_tokenizer(corpus.texts())
    tokenizer.chat_template = (MODEL_PATH / "chat_template.jinja").read_text(encoding="utf-8")
    encoder = Encoder(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(options.out) if options.last else new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(corpus.topics)} topics")
    if not options.last:
        rng = random.Random(SEED)  # noqa: S311
        train_steps(model, batches(corpus, encoder, rng, SHORT_ROWS), options.steps, PEAK_RATE)
        rng = random.Random(SEED + 1)  # noqa: S311
        train_steps(model, batches(corpus, encoder, rng, LONG_ROWS), LONG_STEPS, LONG_PEAK_RATE)
    rng = random.Random(SEED + 2)  # noqa: S311
    train_steps(model, batches(corpus, encoder, rng, LONG_ROWS, JSON_SHARE), JSON_STEPS, JSON_PEAK_RATE)

    scores: dict[str, float] = {}
    for name, dialogues in exam_dialogues(corpus).items():
        results = are_right(model, encoder, dialogues)
        scores[name] = sum(results) / len(results)
        print(f"{name:14} {sum(results)}/{len(results)}")
        marked = zip(dialogues, results, strict=True)
        wrong = [dialogue.messages[-2]["content"] for dialogue, good in marked if not good]
        if wrong:
            print("    wrong:", json.dumps(wrong[:8], ensure_ascii=False))
    write(options.out, model, tokenizer)
    print(f"written to {options.out.name}/ after {time.monotonic() - started:.0f} s")
    passed = scores["canonical"] >= NEEDED_CANONICAL and scores["phrasings"] >= NEEDED_PHRASINGS
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
