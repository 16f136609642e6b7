"""What cannot work is refused before anything reaches the cluster, with a sentence that names the value and the fix."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.charts.chart import CHART, refusal

REFUSED = yaml.safe_load((Path(__file__).parent / "refused.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REFUSED["sentences"])
def test_refused_with_our_sentence(name: str, stats: Counter[str]) -> None:
    case = REFUSED["sentences"][name]
    output = refusal(values=case["set"], kubernetes=case.get("kubernetes", "1.34"))

    assert "execution error" in output, output
    for words in case["says"]:
        assert words in output
    stats["refusals"] += 1


@pytest.mark.parametrize("name", REFUSED["schema"])
def test_refused_by_the_schema(name: str, stats: Counter[str]) -> None:
    case = REFUSED["schema"][name]
    output = refusal(values=case["set"])

    assert "values don't meet the specifications of the schema" in output
    assert case["says"] in output
    stats["refusals"] += 1


def test_every_refusal_of_the_chart_is_tried() -> None:
    """Each sentence of the chart, without its placeholders, is in a refusal of a case above."""
    text = (CHART / "templates" / "_validate.tpl").read_text(encoding="utf-8")
    sentences = re.findall(r'fail (?:\(printf )?"([^"]+)"', text)
    cases = REFUSED["sentences"].values()
    output = [refusal(values=case["set"], kubernetes=case.get("kubernetes", "1.34")) for case in cases]

    assert len(sentences) == text.count("{{- fail ")
    for sentence in sentences:
        parts = re.split("%[sdvq]", sentence)
        assert any(all(part in one for part in parts) for one in output), sentence
