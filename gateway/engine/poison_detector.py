"""Which request an engine has died of ("poison"). Pure: its input is which requests were in the engine, and how many
tokens each had.

A death by itself does not show its cause, and the requests in the engine are sent to the next one together. But a
request without a token since it was sent is a suspect. It is put on trial in the next engine, alone and only until its
first token, after the requests that had progress have gone on. A request is the culprit, and is not sent a third time,
when an engine dies while it is alone on trial, or twice while it is the only one without a token. A request that kills
engines after some tokens each time is found when the supervisor has one restart left: then all are put on trial, each
for one token more than it had made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The number of trials of one request: the last one waits for as many steps of the engine, about a second. Where there
# are more suspects, most are harmless: the rest is tried in groups of growing size, and the members of a group that
# kills an engine one by one in the next.
_ONE_BY_ONE = 64
# The most tokens that a request on trial has to make.
_MOST_NEEDED = 64


@dataclass(slots=True)
class _History:
    """One request. `sent`: how many tokens it had when it was sent last. `needed`: how many more clear it. `suspected`:
    at how many deaths it was a suspect."""

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
        """An engine has died with these requests in it; `tokens` is how many had been received of each. Returns the
        culprit and the number of deaths that it has caused, if that is certain."""
        suspects = []
        for name, received in tokens.items():
            history = self._histories.setdefault(name, _History())
            made = received - history.sent
            history.deaths += 1
            history.needed = min(made, _MOST_NEEDED - 1) + 1
            history.is_suspect = name in self._on_trial if self._on_trial else made == 0
            if history.is_suspect:
                history.suspected += 1
                suspects.append(name)
        was_alone_on_trial = len(self._on_trial) == 1
        self._on_trial.clear()
        if len(suspects) != 1:
            return None
        (name,) = suspects
        history = self._histories[name]
        if history.suspected < 2 and not (was_alone_on_trial and history.deaths > 1):
            return None
        del self._histories[name]
        return name, history.deaths

    def plan_replay(self, names: Iterable[str], *, all_of_them: bool) -> tuple[list[str], list[list[str]]]:
        """The order in which to send these requests to the next engine: some at once, then the groups on trial, one
        after the other. Requests that were in no dead engine are left out."""
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
        """The requests that were in no dead engine."""
        return [name for name in names if name not in self._histories]

    def record_send(self, name: str, tokens: int) -> None:
        """The request is sent again, with that many tokens."""
        if (history := self._histories.get(name)) is not None:
            history.sent = tokens

    def begin_trial(self, names: Iterable[str]) -> None:
        """Only these requests are sent until the end of their trial."""
        self._on_trial = set(names)

    def has_passed(self, name: str, tokens: int) -> bool:
        """Whether a request that now has that many tokens has made enough to be cleared."""
        history = self._histories.get(name)
        return history is None or tokens - history.sent >= (history.needed if name in self._on_trial else 1)

    def pass_trial(self) -> None:
        """End the trial: the engine lives, so none of its requests is a suspect any more."""
        for name in self._on_trial:
            if (history := self._histories.get(name)) is not None:
                history.is_suspect = False
        self._on_trial.clear()

    def forget(self, name: str) -> None:
        """The request has ended."""
        if self._histories:
            self._histories.pop(name, None)
            self._on_trial.discard(name)
