from __future__ import annotations

from gateway import demo
from gateway.engine_plan import plan_engine
from gateway.settings import Settings
from gateway.settings_sections import Synthetic


def test_without_a_model_the_demo_is_served() -> None:
    plan = plan_engine(Settings.model_construct(), None, [], None, lambda _: None)

    assert plan.engine["model"] == str(demo.MODEL_PATH)
    assert plan.is_demo
    assert plan.synthetic is None


def test_without_the_model_itself_its_configuration_stays() -> None:
    """The demo's, or that of the model which the user names."""
    settings = Settings.model_construct(synthetic=Synthetic(enabled=True, step_ms=2, die_at_step=9))
    plan = plan_engine(settings, None, [], None, lambda _: None)

    assert plan.engine["model"] == str(demo.MODEL_PATH)
    assert plan.synthetic is not None
    assert (plan.synthetic["step_ms"], plan.synthetic["die_at_step"]) == (2, 9)
    assert "enabled" not in plan.synthetic
    assert plan_engine(settings, "theirs", [], None, lambda _: None).engine["model"] == "theirs"


def test_the_command_lines_model_beats_the_settings() -> None:
    settings = Settings.model_construct(engine={"model": "settings", "seed": 1})
    plan = plan_engine(settings, "command line", [], None, lambda _: None)

    assert plan.engine == {"model": "command line", "seed": 1}
    assert not plan.is_demo
    assert plan_engine(settings, None, [], None, lambda _: None).engine["model"] == "settings"


def test_workers_share_the_grammar_processes_down_to_two_each() -> None:
    def processes(workers: int, total: int) -> int:
        settings = Settings(server={"workers": workers}, grammars={"processes": total})
        return int(plan_engine(settings, None, [], None, lambda _: None).grammars["processes"])

    assert [processes(1, 8), processes(2, 8), processes(8, 8), processes(8, 1)] == [8, 4, 2, 1]
