from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadtest.analysis.verdict import judge
from loadtest.measure.result import Result, Server, Verdict
from loadtest.report import markdown, page, tables, write
from loadtest.scenario.slo import Slo
from tests.unit.loadtest.fake_results import fake_result, generator, integrity, run

HOSTILE = "<img src=x onerror=alert(1)>\"'`|&{{7*7}}[a](javascript:b)\n# c"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects the elements of a page; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile() -> Result:
    found = fake_result(seconds=20, errors={HOSTILE: 0.2}, tenants=(HOSTILE, "b"))
    changed = found.model_copy(
        update={
            "run": run(
                scenario=HOSTILE, scenario_yaml=HOSTILE, url=HOSTILE, model=HOSTILE, started_at=HOSTILE,
                command=HOSTILE, versions={HOSTILE: HOSTILE}, machine=HOSTILE,
            ),
            "generator": generator(invalid=[HOSTILE]),
            "integrity": integrity(violations={HOSTILE: 1}, examples=[HOSTILE]),
            "server": Server(
                scraped=True, notes=[HOSTILE], left_over={HOSTILE: 1.0},
                series={f'sluice_rejections_total{{reason="{HOSTILE}"}}': [[1.0, 2.0], [2.0, 3.0]]},
            ),
        }
    )  # fmt: skip
    return judged(changed)


def judged(found: Result) -> Result:
    verdict: Verdict = judge(found.summary, found.generator, found.integrity, found.server, Slo())
    return found.model_copy(update={"verdict": verdict})


RUNS = {
    "plain": lambda: fake_result(seconds=20, cancels=0.2),
    "nothing ended well": lambda: judged(fake_result(seconds=20, errors={"connect": 1.0}, scraped=False)),
    "nothing at all": lambda: judged(fake_result(seconds=5, rate=0.0)),
    "no time line": lambda: fake_result(seconds=5).model_copy(update={"timeline": [], "groups": []}),
    "one request": lambda: judged(fake_result(seed=0, seconds=3, warmup=0, drain=1, rate=0.25)),
    "closed loop": lambda: fake_result(seconds=10, closed=True),
    "hostile": hostile,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_valid_and_self_contained(name: str) -> None:
    text = page.render_run(RUNS[name]())
    elements = Reader(text).elements
    named = [tag for tag, _ in elements]
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]

    assert {"img", "link", "iframe", "object", "a"}.isdisjoint(named)
    assert (named.count("script"), named.count("style")) == (1, 1)
    assert not any(
        attribute.startswith("on") or attribute in ("src", "href", "style")
        for _, attrs in elements
        for attribute in attrs
    )
    assert len(ids) == len(set(ids))
    assert all("scope" in attrs for tag, attrs in elements if tag == "th")


def test_text_from_outside_is_shown_unchanged() -> None:
    reader = Reader(page.render_run(hostile()))

    assert "".join(reader.text).count(HOSTILE) >= 12
    assert "49" not in {part.strip() for part in reader.text}


def test_the_content_security_policy_allows_only_our_script() -> None:
    text = page.render_run(fake_result(seconds=5))
    policy = next(attrs["content"] for tag, attrs in Reader(text).elements if "http-equiv" in attrs)
    assert policy is not None
    for tag in ("script", "style"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_verdict_reasons_and_numbers_are_on_it() -> None:
    found = fake_result(seconds=20, errors={"reset": 0.1})
    text = " ".join("".join(Reader(page.render_run(found)).text).split())

    assert "Pass (exit code 0)" in text
    assert found.verdict.reasons[0] in text
    assert tables.latencies(found.summary)[0][-1] in text
    assert "the connection was reset or closed before an answer" in text
    assert "Fairness between tenants" in text


def test_two_files_are_written(tmp_path: Path) -> None:
    write(fake_result(seconds=5), tmp_path / "new")

    assert (tmp_path / "new/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "new/summary.md").read_text(encoding="utf-8").startswith("## chat: Pass (exit code 0)")


def test_hostile_text_does_not_break_the_summarys_tables() -> None:
    text = markdown.render_run(hostile())
    rows = [line for line in text.splitlines() if line.startswith("| ")]

    assert "\n# c" not in text
    assert re.search(r"(?<!\\)<img", text.replace(hostile().run.command.replace("\n", " "), "")) is None
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 5, 10}
    assert "`` <img" in text


def test_a_percentile_of_too_few_values_is_marked() -> None:
    few, many = fake_result(seconds=20), fake_result(seconds=120, rate=40.0, gaps=2)

    assert tables.has_few_samples(tables.latencies(few.summary))
    assert "\\* too few values" in markdown.render_run(few)
    assert not tables.has_few_samples(tables.latencies(many.summary))
    assert "too few values" not in markdown.render_run(many)


def test_jains_index_is_one_for_equal_shares_and_1_by_n_for_one_tenant_alone() -> None:
    alike = fake_result(seconds=30, tenants=("a", "b"))
    starved = [
        group.model_copy(update={"summary": group.summary.model_copy(update={"ok": 0} if group.tenant == "a" else {})})
        for group in alike.groups
    ]
    fair, unfair = tables.fairness(alike.groups), tables.fairness(starved)

    assert fair is not None
    assert unfair is not None
    assert fair.served == 1
    assert fair.first_token == pytest.approx(1, abs=0.01)
    assert unfair.served == 0.5
    assert tables.fairness(fake_result(seconds=5, tenants=("a",)).groups) is None


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a_b*c", r"a\_b\*c"), ("- a", r"\- a"), ("+5 pp", "+5 pp"), ("1. a", r"1\. a"), ("[a](b)", r"\[a\](b)"),
     ("a\n# b", r"a \# b"), ("x (5 %)", "x (5 %)")],
)  # fmt: skip
def test_markdown_is_escaped(text: str, escaped: str) -> None:
    assert markdown.escape(text) == escaped
