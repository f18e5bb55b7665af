"""What pages are built from: text that stays text, marked words, axes with round numbers."""

from __future__ import annotations

import pytest

from instructrec.experiments.drawing import Line, bars, line_chart, shares, ticks
from instructrec.experiments.page import (
    COMPARED,
    LONGEST,
    document,
    filters,
    long,
    marked,
    table,
    text,
)


def test_text_is_escaped_and_what_cannot_be_seen_is_written_out() -> None:
    assert text("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert text("a\u202eb\x1b\n\t") == "a\\u202eb\\u001b\n\t"


def test_new_words_are_marked_and_white_space_is_kept() -> None:
    assert marked("a b", "a b") == "a b"
    assert marked("a x c", " a\n<b>  c\n") == " a\n<mark>&lt;b&gt;</mark>  c\n"
    assert marked("", "two\n\nwords") == "<mark>two\n\nwords</mark>"
    assert marked("gone", "") == ""


def test_a_text_beyond_all_bounds_is_cut_and_not_compared() -> None:
    huge = "<b>&" * 100_000
    assert long("short") == "<div class=long>short</div>"
    for shown in (long(huge), marked("a", huge), marked(huge, huge)):
        assert shown.count("&lt;b&gt;&amp;") == LONGEST // 4
        assert "… (392,000 more characters)" in shown
    words = "new " * (COMPARED // 4 + 1)
    assert marked("", words) == words and "<mark>" in marked("", words[:COMPARED])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 11.2, [0.0, 5.0, 10.0]),
        (-0.3, 0.5, [-0.2, 0.0, 0.2, 0.4]),
        (0.0, 3e-5, [0.0, 1e-5, 2e-5, 3e-5]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_charts_of_odd_data_are_drawn_or_left_out() -> None:
    assert line_chart([Line("none", [])], "x") == "" and shares([("a", 0.0)], "x") == ""
    assert line_chart([Line("one", [(3.0, 0.0)])], "x").count("<circle") == 1
    nan = float("nan")
    drawn = bars([("<i>", 0.5, nan, nan), ("long " * 9, -1.0, -2.0, 0.0)], "x")
    assert "nan" not in drawn and "<i>" not in drawn and drawn.count("class=error") == 1
    chart = line_chart([Line("a", []), Line("<b>", [(1, 1), (2, 2)], [(1, 0, 3), (2, 1, 4)])], "x")
    assert "&lt;b&gt;" in chart and "ea580c" in chart  # the colour of its place


def test_menus_are_offered_where_there_is_a_choice() -> None:
    assert "<select" not in filters({0: ("family", ["only"])})
    menu = filters({2: ("family", ["a", "<b>"])})
    assert 'data-column="2"' in menu and "<option>&lt;b&gt;</option>" in menu


def test_a_page_allows_no_script_but_its_own() -> None:
    page = document("<t>", ["", table(["<h>"], [["<i>cell</i>"]])])
    assert page.count("<script>") == 1 and "default-src &#x27;none&#x27;" in page
    assert "<title>&lt;t&gt;</title>" in page and "&lt;h&gt;" in page
