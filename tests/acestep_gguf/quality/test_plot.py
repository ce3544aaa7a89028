from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.quality.plot import HEIGHT, WIDTH, Dot, divergence_plot, dots_of
from acestep_gguf.quality.statistics import Estimate
from tests.acestep_gguf.quality.reports import text_report


def dot(name: str, megabytes: float, divergence: float) -> Dot:
    return Dot(name, megabytes, Estimate(divergence, divergence * 0.9, divergence * 1.2))


def numbers(svg: ElementTree.Element, tag: str, attribute: str) -> list[float]:
    return [float(found.attrib[attribute]) for found in svg.iter(tag) if attribute in found.attrib]


def test_smaller_is_left_and_better_is_below() -> None:
    svg = ElementTree.fromstring(divergence_plot([dot("Q2_K", 1, 0.5), dot("Q8_0", 4, 0.0005)]))
    (x2, x8), (y2, y8) = numbers(svg, "circle", "cx"), numbers(svg, "circle", "cy")
    assert x2 < x8
    assert y2 < y8
    assert [found.text for found in svg.iter("text") if found.text in ("Q2_K", "Q8_0")] == ["Q2_K", "Q8_0"]
    tops, ends = numbers(svg, "line", "y1"), numbers(svg, "line", "y2")
    intervals = [pair for pair, line in zip(zip(tops, ends, strict=True), svg.iter("line"), strict=True)
                 if line.attrib["class"] == "interval"]  # fmt: skip
    assert all(low > y > high for (low, high), y in zip(intervals, (y2, y8), strict=True))


def test_a_decade_is_as_high_everywhere() -> None:
    svg = ElementTree.fromstring(divergence_plot([dot(str(n), n, 10.0**-n) for n in range(1, 4)]))
    first, second, third = numbers(svg, "circle", "cy")
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_screen_readers_hear_a_title_and_a_description() -> None:
    svg = ElementTree.fromstring(divergence_plot([dot("Q2_K", 1, 0.5), dot("Q8_0", 4, 0.0005)]))
    assert svg.attrib["role"] == "img"
    told = {found.attrib.get("id"): found.text or "" for found in svg}
    title, description = (told[name] for name in svg.attrib["aria-labelledby"].split())
    assert title == "KL divergence against size"
    assert "Q2_K: 1.0 MB, 5.0e-1 nats" in description


def test_labels_of_neighbours_do_not_lie_on_one_another() -> None:
    svg = ElementTree.fromstring(divergence_plot([dot(f"Q{n}", 1, 0.01) for n in range(4)]))
    labels = [float(found.attrib["y"]) for found in svg.iter("text") if (found.text or "").startswith("Q")]
    assert all(later - earlier >= 14 for earlier, later in pairwise(labels))


@settings(max_examples=30)
@given(st.lists(st.builds(dot, st.text(), st.floats(1e-3, 1e5), st.floats(1e-9, 20)), min_size=1, max_size=8))
def test_any_dots_lie_within(dots: list[Dot]) -> None:
    text = divergence_plot(dots)
    assert "<script" not in text
    found = [float(part.split('"')[0]) for part in text.split(' cx="')[1:]]
    assert all(0 <= x <= WIDTH for x in found)
    found = [float(part.split('"')[0]) for part in text.split(' cy="')[1:]]
    assert all(0 <= y <= HEIGHT for y in found)
    assert len(found) == len(dots)


def test_what_does_not_diverge_has_no_dot() -> None:
    assert [found.name for found in dots_of(text_report())] == ["Q4_K_M"]
    assert divergence_plot([]) == ""
