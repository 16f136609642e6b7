"""One word has one meaning (docs/glossary.md): names, comments and docstrings use the field's words, no metaphors, and
software does not say, tell, hear or know. Strings are exempt: some are public names, quotations or texts of a model.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_NOUN = "the noun that is meant"
_ACTS = "a verb for what it does: reports, writes, states, requires"
_RECEIVES = "receives, reads"

# A banned word (or two) and the field's.
WORDS = {
    **dict.fromkeys(("seat", "seats", "seated"), "slot"),
    **dict.fromkeys(("tally", "tallies"), "request stats"),
    **dict.fromkeys(("wish", "wishes"), "request options"),
    **dict.fromkeys(("leash", "leashes", "leashed"), "cancel scope"),
    **dict.fromkeys(("turnstile", "turnstiles"), "per-tick limiter"),
    **dict.fromkeys(("shelf", "shelves"), "retention"),
    **dict.fromkeys(("house", "houses", "landlord"), "parent process"),
    **dict.fromkeys(("oracle", "oracles"), "deterministic tokens"),
    **dict.fromkeys(("lane", "lanes"), "fast path, eligibility"),
    **dict.fromkeys(("witness", "witnesses"), "instrumentation"),
    **dict.fromkeys(("outlet", "outlets"), "sink"),
    **dict.fromkeys(("revival", "revivals", "revive", "revives", "revived"), "restart, recovery"),
    **dict.fromkeys(("nobody", "nobodys", "somebody", "somebodys", "whoever"), _NOUN),
    "doorkeeper": "gate",
    "mortal": "restartable",
    "waiting room": "queue",
    **dict.fromkeys(("says", "said", "tells"), _ACTS),
    **dict.fromkeys(("told", "hears", "heard"), _RECEIVES),
    **dict.fromkeys(("knows", "knew"), "has, uses, depends on"),
}
# In prose they may have a person as subject, or be a plural.
NAMES_ONLY = {
    **dict.fromkeys(("say", "tell"), _ACTS),
    "hear": _RECEIVES,
    **dict.fromkeys(("fact", "facts"), "instrumentation"),
}
# Parts of a comment or docstring that stay: -> the reason.
PUBLIC = {"sluice_seats": "the metric is older than the word slot"}


def _pattern(words: dict[str, str]) -> re.Pattern[str]:
    """The words as a whole, or as a part of a snake_case, UPPER_CASE or CamelCase name."""
    parts = [word.replace(" ", "[ _-]?") for word in sorted(words, key=len, reverse=True)]
    lower, upper, capitalised = ("|".join(map(change, parts)) for change in (str.lower, str.upper, str.capitalize))
    return re.compile(
        f"(?<![A-Za-z])(?:{lower})(?![a-z])|(?<![A-Za-z])(?:{upper})(?![A-Za-z])|(?<![A-Z])(?:{capitalised})(?![a-z])"
    )


_BOTH = WORDS | NAMES_ONLY
_IN_NAMES, _IN_PROSE = _pattern(_BOTH), _pattern(WORDS)
_PUBLIC = re.compile("|".join(map(re.escape, PUBLIC)))


def _docstring_lines(source: str) -> set[int]:
    """The first lines of strings that are statements."""
    return {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _instead(word: str) -> str:
    return _BOTH[re.sub("waiting[_-]?room", "waiting room", word.lower())]


def banned_words(source: str) -> Iterator[tuple[int, str, str]]:
    """Each banned word with its line and the field's word."""
    # Most files have none, also not in their strings, and take no further time.
    if not _IN_NAMES.search(source):
        return
    docstrings = _docstring_lines(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            pattern = _IN_NAMES
        elif token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.start[0] in docstrings):
            pattern = _IN_PROSE
        else:
            continue
        for number, line in enumerate(token.string.split("\n"), token.start[0]):
            for word in pattern.findall(_PUBLIC.sub("", line)):
                yield number, word, _instead(word)


@pytest.mark.parametrize("folder", ["gateway", "loadtest", "tests"])
def test_names_comments_and_docstrings_use_the_words_of_the_glossary(folder: str) -> None:
    wrong = [
        f'{path.relative_to(ROOT)}:{line}: "{word}"; write: {instead}'
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, word, instead in [
            *((0, word, _instead(word)) for word in _IN_NAMES.findall(path.stem)),
            *banned_words(path.read_text(encoding="utf-8")),
        ]
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("free_seats = 1", ["seats"]),
        ("MAX_SEATS = 1", ["SEATS"]),
        ("FACTORY = manufacture", []),
        ("class SeatBudget: ...", ["Seat"]),
        ("class FreeSeat: ...", ["Seat"]),
        ("def say(): ...", ["say"]),
        ("class A:\n    x = 1\n    '''The waiting room.'''", ["waiting room"]),
        ("def test_a_full_waiting_room(): ...", ["waiting_room"]),
        ("# The engine says so,\n# if it is told.", ["says", "told"]),
        ("# As users say.", []),
        ("x = 'vLLM says: no seats'", []),
        ("# The gauge `sluice_seats`.", []),
        ("essays, foretold, mistold, unshelved = 1, 2, 3, 4", []),
    ],
)
def test_words_are_found_in_every_form_of_a_name_and_not_in_strings(source: str, words: list[str]) -> None:
    assert [word for _, word, _ in banned_words(source)] == words
