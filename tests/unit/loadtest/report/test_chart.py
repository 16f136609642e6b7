from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree as ET

import pytest

from loadtest.report.chart import Band, Chart, Line, ReferenceLine
from loadtest.report.scale import Linear, Time

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('&\"')</script>"


def drawn(*lines: Line, **changes: object) -> ET.Element:
    parts: dict[str, object] = {
        "title": "a title", "description": "in words", "x": Time.over(10), "y": Linear.over("y", [10.0]),
        "lines": lines,
    }  # fmt: skip
    return ET.fromstring(Chart(**{**parts, **changes}).svg())  # type: ignore[arg-type]


def paths(svg: ET.Element, kind: str) -> list[str]:
    return [each.get("d", "") for each in svg.iter(f"{SVG}path") if (each.get("class") or "").split()[0] == kind]


def test_a_chart_has_a_text_alternative() -> None:
    svg = drawn(Line("one", [(0, 1), (1, 2)]))
    title, desc = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")

    assert title is not None
    assert desc is not None
    assert (title.text, desc.text) == ("a title", "in words")
    assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"


def test_lines_go_from_corner_to_corner_of_the_plot() -> None:
    assert paths(drawn(Line("one", [(0, 0), (10, 10)])), "line") == ["M52.0 190.0L388.0 10.0"]


def test_a_gap_is_not_bridged_and_a_single_point_is_visible() -> None:
    svg = drawn(Line("one", [(0, 0), (1, 0), (2, None), (3, 5), (4, None)]))

    assert paths(svg, "line")[0].count("M") == 2
    assert [each.get("class") for each in svg.iter(f"{SVG}circle")] == ["dot c0"]


def test_bars_are_stacked() -> None:
    svg = drawn(Line("a", [(0, 2), (1, None)], 0, "bars"), Line("b", [(0, 3), (1, 4)], 1, "bars"))
    bars = [each for each in svg.iter(f"{SVG}rect") if (each.get("class") or "").startswith("bar ")]
    spans = [(float(each.get("y", 0)), float(each.get("height", 0))) for each in bars]

    assert spans == [(154.0, 36.0), (100.0, 54.0), (118.0, 72.0)]


def test_a_limit_is_drawn_with_its_label_if_the_axis_reaches_it() -> None:
    inside, outside = ReferenceLine(5, "limit 5"), ReferenceLine(50, "limit 50")
    svg = drawn(Line("one", [(0, 1)]), reference_lines=(inside, outside, ReferenceLine(9, "found", "x")))

    assert len(paths(svg, "rule")) == 2
    assert [each.text for each in svg.iter(f"{SVG}text") if each.get("class") == "label"] == ["limit 5", "found"]


def test_a_value_beyond_the_axis_stays_in_the_picture() -> None:
    assert paths(drawn(Line("one", [(0, 0), (10, 99)])), "line") == ["M52.0 190.0L388.0 10.0"]


def test_labels_stay_inside_the_picture_and_apart() -> None:
    svg = drawn(Line("one", [(0, 1)]), x=Time.over(123_456))
    ends = []
    for each in svg.iter(f"{SVG}text"):
        if each.get("class") == "tick" and each.get("text-anchor") != "end":
            half = len(each.text or "") * 3.1
            ends.append((float(each.get("x", 0)) - half, float(each.get("x", 0)) + half))

    assert all(left >= 0 and right <= 400 for left, right in ends)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ends))


def test_hostile_text_is_escaped() -> None:
    svg = drawn(
        Line(HOSTILE, [(0, 1)]), title=HOSTILE, description=HOSTILE, unit=HOSTILE,
        reference_lines=(ReferenceLine(5, HOSTILE),), bands=(Band(0, 1, HOSTILE),),
        y=Linear.over(HOSTILE, [10.0]), x_labels=[HOSTILE],
    )  # fmt: skip

    assert not list(svg.iter(f"{SVG}script"))
    assert next(each.text for each in svg.iter() if each.text == HOSTILE) == HOSTILE
    assert json.loads(svg.get("data-chart", ""))["l"] == [HOSTILE]


def test_hover_data_is_beside_the_picture() -> None:
    svg = drawn(Line("one", [(0, 1), (5, None), (10, 3.14159)]), Line("two", [(5, 2)], 1), unit=" ms")
    hover_data = json.loads(svg.get("data-chart", ""))

    assert hover_data["l"] == ["t 0", "t 5", "t 10"]
    assert hover_data["x"] == [52.0, 220.0, 388.0]
    assert [line["v"] for line in hover_data["s"]] == [["1 ms", "", "3.142 ms"], ["", "2 ms", ""]]


@pytest.mark.parametrize("lines", [(), (Line("one", []),), (Line("one", [(0, None)]),)])
def test_a_chart_without_values_is_empty(lines: tuple[Line, ...]) -> None:
    assert Chart("t", "d", Time.over(1), Linear.over("y", []), lines).is_empty


def test_two_charts_on_a_page_have_ids_of_their_own_and_the_same_chart_the_same() -> None:
    one, again, two = (drawn(Line("one", [(0, 1)]), title=title) for title in ("a", "a", "b"))

    assert one.get("aria-labelledby") == again.get("aria-labelledby") != two.get("aria-labelledby")
