"""Which request an engine has died of. Pure: it is told who was in the engine and how many tokens each had.

A death by itself says nothing of its cause, and the requests in the engine are sent to the next one together. But a
request without a token since it was sent may be what the engine died of: in the next engine it is tried, alone and only
until its first token, when those that had progress have gone on. What an engine dies of while it is on trial alone, or
twice as the only one without a token, is the cause and is not sent a third time. A request that ends engines after some
tokens each time is found when the supervisor has one restart left: then all are tried, each for a token more than it
had made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# So many are tried one by one: the last of them waits for as many steps of the engine, about a second. Of more, most
# are innocent: the rest is tried in groups of growing size, and a group that ends an engine one by one in the next.
_ONE_BY_ONE = 64
# The most tokens that one on trial has to make.
_MOST_NEEDED = 64


@dataclass(slots=True)
class _History:
    """What is known of one request. `sent`: tokens it had when it was sent last. `needed`: so many more clear it."""

    sent: int = 0
    deaths: int = 0
    suspected: int = 0
    needed: int = 1
    is_suspect: bool = False


class PoisonDetector:
    """Remembers the requests that were in an engine when it died, until they end. Names are request ids."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}
        self._on_trial: set[str] = set()

    def record_death(self, tokens: Mapping[str, int]) -> tuple[str, int] | None:
        """An engine has died with these requests in it, of which so many tokens had been received. The one it died of
        and how many deaths that one has seen, if that is certain."""
        suspects = []
        for name, received in tokens.items():
            past = self._histories.setdefault(name, _History())
            made = received - past.sent
            past.deaths += 1
            past.needed = min(made, _MOST_NEEDED - 1) + 1
            past.is_suspect = name in self._on_trial if self._on_trial else made == 0
            if past.is_suspect:
                past.suspected += 1
                suspects.append(name)
        was_alone_on_trial = len(self._on_trial) == 1
        self._on_trial.clear()
        if len(suspects) != 1:
            return None
        (name,) = suspects
        past = self._histories[name]
        if past.suspected < 2 and not (was_alone_on_trial and past.deaths > 1):
            return None
        del self._histories[name]
        return name, past.deaths

    def plan_replay(self, names: Iterable[str], *, all_of_them: bool) -> tuple[list[str], list[list[str]]]:
        """In which order to send these requests to the next engine: some at once, then the groups on trial. Names that
        no engine has died with are left out."""
        known = [name for name in names if name in self._histories]
        on_trial = [name for name in known if all_of_them or self._histories[name].is_suspect]
        at_once = [] if all_of_them else [name for name in known if not self._histories[name].is_suspect]
        again = [name for name in on_trial if self._histories[name].suspected > 1]
        first = [name for name in on_trial if self._histories[name].suspected <= 1]
        groups = [[name] for name in [*again, *first[:_ONE_BY_ONE]]]
        rest, size = first[_ONE_BY_ONE:], 2
        while rest:
            groups.append(rest[:size])
            rest, size = rest[size:], size * 2
        return at_once, groups

    def without_history(self, names: Iterable[str]) -> list[str]:
        """Those that no engine has died with."""
        return [name for name in names if name not in self._histories]

    def record_send(self, name: str, tokens: int) -> None:
        """It is sent again, with so many tokens."""
        if (past := self._histories.get(name)) is not None:
            past.sent = tokens

    def begin_trial(self, names: Iterable[str]) -> None:
        """Only these are sent now."""
        self._on_trial = set(names)

    def has_passed(self, name: str, tokens: int) -> bool:
        """Whether one that now has so many tokens has made what clears it."""
        past = self._histories.get(name)
        return past is None or tokens - past.sent >= (past.needed if name in self._on_trial else 1)

    def pass_trial(self) -> None:
        """The engine lives: they were not it."""
        for name in self._on_trial:
            if (past := self._histories.get(name)) is not None:
                past.is_suspect = False
        self._on_trial.clear()

    def forget(self, name: str) -> None:
        """It has ended."""
        if self._histories:
            self._histories.pop(name, None)
            self._on_trial.discard(name)


__all__ = ["PoisonDetector"]
