from __future__ import annotations

from typing import Any

import pytest

from gateway.engine.vllm.startup.arguments import catalog, flag_rules, variables
from gateway.engine.vllm.startup.arguments.flag_rules import RuleKind


@pytest.mark.parametrize("version", catalog.listed_versions())
def test_every_flag_has_exactly_one_rule(version: str) -> None:
    tables = (flag_rules.SETTINGS, flag_rules.ALWAYS, flag_rules.REFUSED, flag_rules.PASSED)
    for name, flag in catalog.load_catalog(version).flags.items():
        found = flag_rules.find_rule(flag)
        assert found is not None, f"no rule for {flag.name} of vLLM {version}"
        assert sum(name in table for table in tables) <= 1, name
        if found.kind is RuleKind.SETTING:
            assert name in flag_rules.SETTINGS


def test_every_rule_is_for_an_existing_flag() -> None:
    flags = {name for version in catalog.listed_versions() for name in catalog.load_catalog(version).flags}

    for table in (flag_rules.SETTINGS, flag_rules.ALWAYS, flag_rules.REFUSED, flag_rules.PASSED):
        assert set(table) <= flags


def test_the_settings_of_flags_and_variables_exist() -> None:
    from gateway.settings import Settings

    for setting in [*(found.setting for found in flag_rules.SETTINGS.values()), *variables.SETTINGS.values()]:
        model: Any = Settings
        for part in setting.split("."):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            assert part in fields, setting
            kinds = [fields[part].annotation, *getattr(fields[part].annotation, "__args__", ())]
            model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
