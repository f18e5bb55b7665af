"""The screen of ``instructrec label``, driven by keys as a person would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from instructrec.experiments.label_book import Book, Sitting
from instructrec.experiments.label_items import Candidate, Item

pytest.importorskip("textual")

from instructrec.experiments.label_terminal import LabelApp

ITEMS = [
    Item("q0", "Say hello.", (Candidate("a", "[red]hello[/]"), Candidate("b", "\x1b[2J bye"))),
    Item("q1", [{"role": "user", "content": "2+2?"}], (Candidate("a", "4"), Candidate("b", "5"))),
    Item("q2", "Say bye.", (Candidate("a", "bye"), Candidate("b", "")), reference="bye"),
]


def driven(book: Book, keys: Sequence[str], items: Sequence[Item] = ITEMS, pairs: bool = True):
    """The screens after each key, as text."""
    app = LabelApp(Sitting(items, book), pairs=pairs, show_reference=True)

    async def drive() -> list[str]:
        screens = []
        async with app.run_test(size=(100, 40)) as pilot:
            await pilot.pause()
            screens.append(text_of(app))
            for key in keys:
                await pilot.press(key)
                await pilot.pause()
                screens.append(text_of(app) if app.is_running else "")
        return screens

    return asyncio.run(drive())


def text_of(app: LabelApp) -> str:
    """What the screen shows."""
    from textual.widgets import Static

    return "\n".join(str(widget.content) for widget in app.query(Static))


def test_keys_judge_take_back_and_end(tmp_path: Path) -> None:
    with Book(tmp_path / "judgments-me.jsonl") as book:
        left = Sitting(ITEMS, book).sides[0].source
        screens = driven(book, ["1", "t", "u", "s", "q"])
        assert book.judgments["q0"].winner == left and book.judgments["q1"].kind == "skip"
    assert "1 of 3" in screens[0] and "Say hello." in screens[0]
    assert "[red]hello[/]" in screens[0] and "\x1b" not in screens[0]  # as text, not as style
    assert "2 of 3" in screens[1] and "2+2?" in screens[1]
    assert "3 of 3" in screens[2] and "expected: bye" in screens[2] and "(nothing)" in screens[2]
    assert "2 of 3" in screens[3]


def test_the_last_judgment_can_be_taken_back_too(tmp_path: Path) -> None:
    with Book(tmp_path / "judgments-me.jsonl") as book:
        screens = driven(book, ["2", "2", "2", "1", "e", "u"])
        assert "all 3 are judged" in screens[3] and screens[3] == screens[4] == screens[5]
        assert "3 of 3" in screens[6] and "taken back: second better" in screens[6]
        driven(book, ["s"])
        assert "all 3 are judged" in driven(book, ["q"])[0]  # another sitting, to look at it
        screens = driven(book, ["u", "t", "q"])
        assert "taken back: skip" in screens[1] and screens[3] == ""
        assert [said.kind for said in book.judgments.values()] == ["prefer", "prefer", "tie"]


def test_long_texts_are_moved_by_keys_both_responses_together(tmp_path: Path) -> None:
    from textual.containers import VerticalScroll

    long = "word\n" * 200
    items = [Item("q0", long, (Candidate("a", long + "a"), Candidate("b", long + "b")))]

    async def drive() -> list[list[float]]:
        seen = []
        async with app.run_test(size=(100, 40)) as pilot:
            for key in ("pagedown", "down", "up", "pageup", "]", "["):
                await pilot.press(key)
                await pilot.pause()
                seen.append([pane.scroll_y for pane in app.query(VerticalScroll)])
            await pilot.press("left")  # still a judgment
        return seen

    with Book(tmp_path / "judgments-me.jsonl") as book:
        app = LabelApp(Sitting(items, book), pairs=True)
        page, line, back, top, prompt, end = asyncio.run(drive())
        assert book.judgments["q0"].kind == "prefer"
    assert page[0] == 0 and page[1] == page[2] > 5
    assert line == [0, page[1] + 1, page[1] + 1] and back == page and top == [0, 0, 0] == end
    assert prompt[0] > 5 and prompt[1:] == [0, 0]


def test_a_better_answer_is_written_and_counts_with_the_judgment(tmp_path: Path) -> None:
    with Book(tmp_path / "judgments-me.jsonl") as book:
        screens = driven(book, ["e", "H", "i", "1", "ctrl+s", "t"])
        said = book.judgments["q0"]
        assert (said.kind, said.correction) == ("tie", "Hi1")  # keys were letters meanwhile
        assert "your answer: Hi1" in screens[5]


def test_either_response_can_be_edited(tmp_path: Path) -> None:
    for key, side in (("e", 0), ("E", 1)):
        with Book(tmp_path / f"judgments-{key}.jsonl") as book:
            shown = Sitting(ITEMS, book).sides[side].text.replace("\x1b", "")
            driven(book, [key, "right", "!", "ctrl+s", "s"])  # behind all of it
            assert book.judgments["q0"].correction == f"{shown}!"


def test_leaving_the_editor_keeps_nothing(tmp_path: Path) -> None:
    with Book(tmp_path / "judgments-me.jsonl") as book:
        driven(book, ["e", "x", "escape", "2"])
        assert book.judgments["q0"].correction is None


def test_scores_are_keys(tmp_path: Path) -> None:
    singles = [Item(item.id, item.prompt, item.candidates[:1]) for item in ITEMS]
    with Book(tmp_path / "judgments-me.jsonl") as book:
        driven(book, ["5", "u", "4", "1"], singles, pairs=False)
        assert [said.score for said in book.judgments.values()] == [4, 1]
