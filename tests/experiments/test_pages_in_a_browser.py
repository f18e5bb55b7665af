"""Pages of reports, comparisons and explained episodes, opened in a real browser from the disk."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.compare import CompareConfig, compare
from instructrec.experiments.explain_text import page_of
from instructrec.experiments.report import report

pytestmark = pytest.mark.slow

EVIL = (
    "</td></table><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
    "<svg onload='window.hit = 3'><a href=\"javascript:window.hit = 4\">x</a> \u202egnp.exe"
)
NUMBERS = {"logprob": -1.0, "reference": -2.0, "kl": 1.0, "entropy": 0.5, "value": None}
EXPLAINED = {
    **dict.fromkeys(("policy", "reference", "id", "prompt", "expected", "response"), EVIL),
    **{"total": 1.0, "parts": {"a": 1.0, "b": 0.5}, "statuses": {"a": "scored", "b": "scored"}},
    "tokens": [{"token": EVIL, **NUMBERS, "advantage": 0.2, "top": [{"token": EVIL, "share": 0.5}]}]
    * 9,
    "words": [{"word": EVIL, "adds": 0.3, "parts": {"a": 0.1, "b": -0.4}}] * 9,
    "notes": [EVIL],
}
"""An explained episode whose every text is hostile."""
VISIBLE = "[...document.querySelectorAll('table.samples')].map((t) => "
VISIBLE += "[...t.tBodies[0].rows].filter((r) => !r.hidden).length)"
WIDE = "[...document.querySelectorAll('.wide')]"
PAPER = 700
"""Width of a sheet of A4 within its margins."""
ESSENTIAL = "h1, h2, h3, ul, p, svg, table, thead, tbody tr, td, th, output, .key, mark"
ABSENT = f"[...document.querySelectorAll('{ESSENTIAL}')].filter((e) => !e.getClientRects().length)"


@pytest.fixture
def pages(
    tmp_path: Path, write_run: Callable[..., Path], write_evaluation: Callable[..., Path]
) -> dict[str, Path]:
    """A report, a comparison and an explained episode whose policies wrote something hostile."""

    def silent(_: str) -> None:
        pass

    run = write_run(tmp_path / "a<b>", right=30, response=EVIL)
    start = write_evaluation(run / "eval" / "start-0.jsonl", 10, response=EVIL)
    report(str(run), say=silent)
    named = [f"<i>{EVIL[:30]}={start}", str(run)]
    compare(named, CompareConfig(out=str(tmp_path / "c")), say=silent)
    explained = tmp_path / "explained.html"
    explained.write_text(page_of(EXPLAINED), encoding="utf-8")
    return {
        "report": run / "report" / "report.html",
        "compare": tmp_path / "c" / "compare.html",
        "explain": explained,
    }


@pytest.mark.parametrize("name", ["report", "compare", "explain"])
def test_a_page_opens_without_complaint_and_hostile_text_stays_text(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name])
    assert browser.run("window.hit") is None
    assert browser.run("document.querySelectorAll('img, td a, td script').length") == 0
    assert "</td></table><script>" in browser.run("document.body.innerText")
    assert browser.complaints == []


@pytest.mark.parametrize("name", ["report", "compare", "explain"])
def test_a_page_fits_a_phone_and_a_desktop(browser: Any, pages: dict[str, Path], name: str) -> None:
    for width, dark in ((390, False), (1280, True)):
        browser.open(pages[name], width, dark)
        assert browser.run("document.documentElement.scrollWidth") <= width
        shade = browser.run("getComputedStyle(document.body).color")
        assert (shade == "rgb(255, 255, 255)") is dark


def test_rows_sort_by_a_click_and_numbers_sort_as_numbers(
    browser: Any, pages: dict[str, Path]
) -> None:
    browser.open(pages["report"])
    table = "document.querySelector('table.samples')"
    column = f"[...{table}.tBodies[0].rows].map((r) => parseFloat(r.cells[0].textContent))"
    click = f"{table}.tHead.rows[0].cells[0].querySelector('button').click()"
    browser.run(click)
    rising = browser.run(column)
    assert rising == sorted(rising) and len(set(rising)) == 2
    browser.run(click)
    assert browser.run(column) == rising[::-1]
    assert browser.complaints == []


def test_rows_are_filtered_by_words_and_by_menus(browser: Any, pages: dict[str, Path]) -> None:
    def choose(number: int, field: str, value: str) -> list[int]:
        found = f"document.querySelectorAll('.filters')[{number}].querySelector('{field}')"
        told = "dispatchEvent(new Event('input', {bubbles: true}))"
        browser.run(f"{found}.value = {value!r}; {found}.{told}")
        counts: list[int] = browser.run(VISIBLE)
        return counts

    browser.open(pages["report"])
    assert browser.run(VISIBLE) == [40, 6]
    assert choose(0, "input", "QUESTION 3") == [11, 6]  # 3 and 30 to 39, in any case
    assert choose(0, "select", "odd") == [6, 6]
    assert browser.run("document.querySelector('.filters output').textContent") == "6 of 40 rows"
    assert choose(0, "input", "") == [20, 6]
    assert choose(1, "select", "late") == [20, 2]
    browser.open(pages["compare"])
    assert choose(0, "select", "even") == [20]
    assert browser.complaints == []


@pytest.fixture
def four(tmp_path: Path, write_run: Callable[..., Path]) -> Path:
    """The page of four policies with three runs each, on two tasks."""
    runs = [
        write_run(tmp_path / f"{name}-s{seed}", right=right + seed, seed=seed, variant=name)
        for name, right in (("a", 20), ("best", 36), ("poor", 5), ("fair", 12))
        for seed in range(3)
    ]
    compare(list(map(str, runs)), CompareConfig(out=str(tmp_path / "c")), say=lambda text: None)
    return tmp_path / "c" / "compare.html"


def test_the_policies_of_a_comparison_sort_by_any_column(browser: Any, four: Path) -> None:
    table = "document.querySelector('table.sortable')"
    names = f"[...{table}.tBodies[0].rows].map((r) => r.cells[0].textContent)"
    browser.open(four)
    heads = browser.run(f"[...{table}.tHead.rows[0].cells].map((c) => c.textContent)")
    assert browser.run(names) == ["a", "best", "poor", "fair"]
    rising = ["poor", "fair", "a", "best"]
    for head in ("total", "of other runs", "by seed", "IQM of tasks"):
        click = f"{table}.tHead.rows[0].cells[{heads.index(head)}].querySelector('button').click()"
        browser.run(click)
        assert browser.run(names) == rising, head
        browser.run(click)
        assert browser.run(names) == rising[::-1], head
    assert browser.complaints == []


def test_responses_of_a_comparison_sort_and_are_filtered_together(browser: Any, four: Path) -> None:
    rows = "[...document.querySelector('table.samples').tBodies[0].rows].filter((r) => !r.hidden)"
    differences = f"{rows}.map((r) => parseFloat(r.cells[0].textContent))"
    browser.open(four)
    falling = browser.run(differences)
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 2
    browser.run("document.querySelector('table.samples th button').click()")
    assert browser.run(differences) == sorted(falling)
    field = "document.querySelector('.filters input')"
    browser.run(f"{field}.value = 'QUESTION 1'; {field}.dispatchEvent(new Event('input'))")
    some = browser.run(differences)
    assert len(some) == 11 and some == sorted(some)  # 1 and 10 to 19, in the order of before
    menu = "document.querySelector('.filters select')"
    browser.run(f"{menu}.value = 'even'; {menu}.dispatchEvent(new Event('input'))")
    asked = browser.run(f"{rows}.map((r) => r.cells[1].textContent)")
    assert sorted(asked) == [f"question {i}" for i in (10, 12, 14, 16, 18)]
    assert browser.complaints == []


def test_all_columns_of_a_comparison_can_be_reached(browser: Any, four: Path) -> None:
    ends = "{d.scrollLeft = 1e6; return d.querySelector('tr').lastChild.getBoundingClientRect()}"
    for width in (390, 1280):
        browser.open(four, width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.querySelectorAll('table:not(.wide > table)').length") == 0
        rights = browser.run(f"{WIDE}.map((d) => {ends}).map((r) => r.right)")
        assert len(rights) == 5 and max(rights) <= width
    browser.open(four, 1280)
    by_task = f"{WIDE}.filter((d) => d.closest('section').textContent.startsWith('By task'))"
    assert browser.run(f"{by_task}.map((d) => d.scrollWidth <= d.clientWidth)") == [True]


@pytest.mark.parametrize("dark", [False, True])
def test_a_comparison_is_whole_on_paper(browser: Any, four: Path, dark: bool) -> None:
    browser.open(four, PAPER, dark, media="print")
    assert browser.run(f"{ABSENT}.map((e) => e.outerHTML)") == []
    assert browser.run("getComputedStyle(document.querySelector('.filters input')).display") == (
        "none"
    )
    assert browser.run("document.documentElement.scrollWidth") <= PAPER
    rights = f"{WIDE}.map((d) => d.firstChild.getBoundingClientRect().right)"
    assert max(browser.run(rights)) <= PAPER
    assert browser.run("getComputedStyle(document.querySelector('.key')).printColorAdjust") == (
        "exact"
    )
    assert browser.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    pdf = base64.b64decode(browser.send("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")
