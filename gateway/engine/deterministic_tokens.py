"""The tokens of the synthetic engine: each is a function of the prompt's first token and of its position.

So any client can check any part of any stream without having seen the rest, and a stream that was interrupted and
resumed (prompt and tokens so far, submitted anew) goes on with the same tokens.

Token ids are those of the demo model's tokenizer, where they spell words of ASCII letters and, in one of eight blocks
of eight positions, an emoji whose four bytes are four tokens, so that streams are also cut inside a character.
None of them ends a sequence or is special there. Prompts that begin alike are answered alike. Chats all begin with the
same token and differ in position only: to distinguish streams, send completions whose prompts are token ids.
"""

from __future__ import annotations

# The longest run of ids that are plain word pieces (letters, some after one space).
FIRST_WORD, WORDS = 976, 170
BLOCK = 8
# One of this many blocks holds an emoji; its offset in the block.
EMOJI_EVERY, EMOJI_AT = 8, 2
# The bytes F0 9F 98; the last one is 80 to 9F, which are 32 neighbours: U+1F600 to U+1F61F.
EMOJI_HEAD, EMOJI_TAIL, EMOJIS = (180, 261, 254), 230, 32
LARGEST = FIRST_WORD + WORDS - 1

_MASK = 2**32 - 1
# 2**32 divided by the golden ratio (Knuth): neighbouring first tokens get seeds that are far apart.
_SPREAD = 0x9E3779B1
# Keeps the numbers of blocks apart from those of positions.
_BLOCKS = 0x7F4A7C15


def token_at(first_prompt_token: int, position: int) -> int:
    """The token at `position`, counted from 0 at the start of the prompt."""
    seed = first_prompt_token * _SPREAD
    block, place = divmod(position, BLOCK)
    place -= EMOJI_AT
    if 0 <= place <= len(EMOJI_HEAD):
        chance = _mix((seed ^ _BLOCKS) + block)
        if chance % EMOJI_EVERY == 0:
            tail = EMOJI_TAIL + chance // EMOJI_EVERY % EMOJIS
            return tail if place == len(EMOJI_HEAD) else EMOJI_HEAD[place]
    return FIRST_WORD + _mix(seed + position) % WORDS


def tokens(first_prompt_token: int, start: int, count: int) -> list[int]:
    """The tokens at `count` positions from `start` on; `start` is the prompt's length for a whole answer."""
    return [token_at(first_prompt_token, position) for position in range(start, start + count)]


def _mix(value: int) -> int:
    """A 32-bit hash of `value`: the finalizer `fmix32` of MurmurHash3 (Austin Appleby, public domain)."""
    value &= _MASK
    value ^= value >> 16
    value = value * 0x85EBCA6B & _MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & _MASK
    return value ^ value >> 16
