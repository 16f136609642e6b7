"""`sluice check`: finds all problems of a start at once, without starting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway import server
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.errors import SettingsError
from gateway.settings import Settings
from gateway.transports.common import tls
from gateway.transports.common.api_keys import ApiKeys
from gateway.transports.http import custom_middleware


def find_problems(settings: Settings, plan: EnginePlan, report: Callable[[str], None]) -> list[str]:
    """A sentence for each problem. `report` is called with each stage of the check."""
    # Not imported above, because a server does not need it.
    from gateway.engine.vllm.startup import checks

    found: list[str] = []
    report("checking files and ports")
    for check in (check_files, _listen):
        try:
            check(settings)
        except SettingsError as error:
            found += error.problems
    found += checks.find_problems(plan)
    return list(dict.fromkeys(found))


def _listen(settings: Settings) -> None:
    server.listen(settings.server).close()


def check_files(settings: Settings) -> None:
    """Read the files of the settings. Raises SettingsError with a sentence for each problem."""
    problems: list[str] = []
    keys, files = settings.server.api_keys_file, settings.server.tls
    checks: list[Callable[[], Any]] = [lambda: custom_middleware.load(settings.server.middleware)]
    if keys is not None:
        checks.append(lambda: ApiKeys(keys))
    if files is not None:
        checks.append(lambda: tls.load(tls.CertificateFiles(**dict(files))))
    for check in checks:
        try:
            check()
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(*problems)
