"""What a start would find wrong, all of it at once, without starting: `sluice check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway import server
from gateway.engine_plan import EnginePlan
from gateway.errors import SettingsError
from gateway.settings import Settings
from gateway.transports.common import tls
from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.http import custom_middleware


def find_problems(settings: Settings, plan: EnginePlan, say: Callable[[str], None]) -> list[str]:
    """A sentence for each problem. `say` is told what is being looked at."""
    # Not above: a server has no use for it.
    from gateway.engine.vllm.startup.checks import find_problems

    found: list[str] = []
    say("looking at files and ports")
    for look in (check_files, _listen):
        try:
            look(settings)
        except SettingsError as error:
            found += error.problems
    found += find_problems(plan)
    return list(dict.fromkeys(found))


def _listen(settings: Settings) -> None:
    server.listen(settings.server).close()


def check_files(settings: Settings) -> None:
    """Read what the settings name. Raises SettingsError with a sentence for each problem."""
    problems: list[str] = []
    keys, files = settings.server.api_keys_file, settings.server.tls
    looks: list[Callable[[], Any]] = [lambda: custom_middleware.load(settings.server.middleware)]
    if keys is not None:
        looks.append(lambda: ApiKeys(keys))
    if files is not None:
        looks.append(lambda: tls.load(tls.CertificateFiles(**dict(files))))
    for look in looks:
        try:
            look()
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(*problems)


__all__ = ["check_files", "find_problems"]
