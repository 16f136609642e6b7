"""Random variants of a question.

A tiny model learns the exact spelling of a question unless it sees many spellings. These are common ones: no capitals,
no question mark, a "please", a typing error, or another verb. All randomness comes from the passed generator.
"""

from __future__ import annotations

import random
import re
import string

PREFIXES = (
    "please ",
    "Please, ",
    "Hey, ",
    "Hi, ",
    "Hello! ",
    "So, ",
    "ok, ",
    "And ",
    "Well, ",
    "Tell me, ",
    "Can you tell me: ",
    "Could you please tell me: ",
    "I would like to know: ",
    "I have a question. ",
    "Quick question: ",
    "Sorry, ",
    "Question: ",
)
SUFFIXES = (
    " please",
    ", please",
    " Thanks!",
    " thanks",
    " in short",
    " exactly",
    "?",
    "!",
    ".",
    " ...",
    " :)",
    " again",
)
SMALL_WORDS = """
a an the is are do does did i you it to of in my me can could would please what how
there be am if with on at that this
"""
STOP_WORDS = frozenset(re.findall(r"\w+", SMALL_WORDS))

# Pattern of a phrasing, and other phrasings of the same question.
OTHER_SHAPES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (
        re.compile(r"^What (?:is|are) (?!this|my|it\b|the state|what's)(?:an? |the )?(.+)\?$"),
        (
            "What's {}?",
            "Explain {}",
            "Can you explain {}?",
            "Define {}",
            "{}?",
            "What is meant by {}?",
            "Tell me about {}",
            "What does {} mean?",
            "I do not understand {}",
            "Could you explain {} to me?",
            "Tell me what {} is",
            "meaning of {}",
            "Describe {}",
            "What exactly is {}?",
            "Do you know what {} is?",
            "Give me the definition of {}",
            "what is {}",
        ),
    ),
    (
        re.compile(r"^How (?:do|can) I (.+)\?$"),
        (
            "How can I {}?",
            "How do I {}?",
            "How to {}?",
            "I want to {}",
            "Is there a way to {}?",
            "Help me {}",
            "How would I {}?",
            "What do I have to do to {}?",
            "I need to {}",
            "Tell me how to {}",
            "Show me how to {}",
            "Can you help me to {}?",
            "How does one {}?",
            "What is the best way to {}?",
            "how do you {}?",
            "Explain how to {}",
            "can I {}",
        ),
    ),
    (
        re.compile(r"^What happens (?:if|when) (.+)\?$"),
        (
            "What if {}?",
            "What happens when {}?",
            "What happens if {}?",
            "What does Sluice do if {}?",
            "And if {}?",
            "What will happen when {}?",
        ),
    ),
)


def paraphrases(question: str) -> list[str]:
    """The question, and other sentences for it if its pattern is known."""
    found = [question]
    for shape, others in OTHER_SHAPES:
        match = shape.match(question)
        if match:
            found += [other.format(match.group(1)) for other in others]
    return found


def bare_words(question: str) -> str:
    """Only the words, to compare questions."""
    return " ".join(re.findall(r"\w+", question.lower()))


def made_up_word(rng: random.Random) -> str:
    """A word without meaning, for questions that the model must not answer."""
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))


def vary(question: str, rng: random.Random) -> str:
    """The question in a random spelling; about one in three is unchanged."""
    if rng.random() < 0.3:
        return question
    text = rng.choice(paraphrases(question)) if rng.random() < 0.5 else question
    if rng.random() < 0.25:
        text = text.rstrip("?!. ")
    if rng.random() < 0.15:
        text = _without_stop_words(text, rng)
    if rng.random() < 0.12:
        text = _with_a_typing_error(text, rng)
    if rng.random() < 0.2:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.2:
        text = text + rng.choice(SUFFIXES)
    if rng.random() < 0.4:
        text = text.lower()
    elif rng.random() < 0.05:
        text = text.upper()
    if rng.random() < 0.06:
        text = text.replace(" ", "  ", 1)
    if rng.random() < 0.08:
        text = rng.choice((" ", "\n", "")) + text + rng.choice((" ", "\n", "  "))
    return text


def _without_stop_words(text: str, rng: random.Random) -> str:
    """Without some or all of the small words, unless too little would remain."""
    share = rng.choice((0.4, 1.0))
    words = text.split(" ")
    kept = [word for word in words if word.lower().strip("?!.,") not in STOP_WORDS or rng.random() > share]
    return " ".join(kept) if len(kept) > 1 or (kept and len(kept[0]) > 5) else text


def _with_a_typing_error(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text))
    match rng.randrange(3):
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        case _:
            return text[:at] + rng.choice(string.ascii_lowercase) + text[at + 1 :]
