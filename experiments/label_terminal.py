"""The screen of ``instructrec label``: an instruction, its responses, and keys to judge them by."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Static, TextArea

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments.env_commands import shown
from instructrec.experiments.label_book import SCORES, Judgment, Sitting

_PREFER = (
    Binding("1,left", "prefer(0)", "first better"),
    Binding("2,right", "prefer(1)", "second better"),
    Binding("t,0", "tie", "equal"),
    Binding("E", "write(1)", "edit the second", show=False),
)
_SCORE = tuple(
    Binding(str(score), f"score({score})", {1: "worst", 5: "best"}.get(score, str(score)))
    for score in SCORES
)
_ALWAYS = (
    Binding("s", "skip", "skip"),
    Binding("e", "write(0)", "write a better"),
    Binding("u", "undo", "undo"),
    Binding("up", "scroll('side', 'up')", show=False),
    Binding("down", "scroll('side', 'down')", "scroll"),
    Binding("pageup", "scroll('side', 'page_up')", show=False),
    Binding("pagedown", "scroll('side', 'page_down')", show=False),
    Binding("left_square_bracket", "scroll('prompt', 'page_up')", show=False),
    Binding("right_square_bracket", "scroll('prompt', 'page_down')", show=False),
    Binding("q", "leave", "end"),
)
_JUDGING = ("prefer", "tie", "score", "skip", "write")
_ANY_TIME = ("undo", "scroll", "leave")


class LabelApp(App[None]):
    """One mentor at a terminal.

    Args:
        sitting: What is judged.
        pairs: Two responses; else one, which gets a score.
        show_reference: Show the expected answer, too.
        notes: Lines for the first screen.
    """

    CSS = """
    #progress { height: auto; padding: 0 1; color: $text-muted; }
    #prompt { height: auto; max-height: 40%; border: round $primary; padding: 0 1; }
    #sides { height: 1fr; }
    .side { border: round $secondary; padding: 0 1; width: 1fr; }
    #editor { height: 40%; display: none; border: round $accent; }
    #note { height: auto; padding: 0 1; color: $warning; }
    """
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # keys are for judging, not for the editor that is not shown
    BINDINGS: ClassVar[list[Any]] = [
        Binding("ctrl+s", "save", "keep the answer", show=False, priority=True),
        Binding("escape", "close_editor", "back", show=False, priority=True),
    ]

    def __init__(
        self,
        sitting: Sitting,
        *,
        pairs: bool,
        show_reference: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.sitting, self.pairs, self.show_reference = sitting, pairs, show_reference
        self._note = " ".join(notes)
        for binding in (*(_PREFER if pairs else _SCORE), *_ALWAYS):
            words, is_shown = binding.description, binding.show
            self.bind(binding.key, binding.action, description=words, show=is_shown)

    def compose(self) -> ComposeResult:
        """The parts of the screen, from above."""
        yield Static(id="progress")
        with VerticalScroll(id="prompt", classes="prompt", can_focus=False):
            yield Static(id="prompt-text")
        with Horizontal(id="sides"):
            for side in range(2 if self.pairs else 1):
                with VerticalScroll(id=f"side-{side}", classes="side", can_focus=False):
                    yield Static(id=f"response-{side}")
        yield TextArea(id="editor")
        yield Static(id="note")
        yield Footer()

    def on_mount(self) -> None:
        """Shows the first item."""
        self.query_one("#prompt").border_title = "instruction"
        for side, name in enumerate(("first", "second") if self.pairs else ("response",)):
            self.query_one(f"#side-{side}").border_title = name
        self.query_one("#editor").border_title = "a better answer (ctrl+s keeps it, escape leaves)"
        self._show()

    @property
    def _is_writing(self) -> bool:
        return bool(self.query_one("#editor").display)

    def _show(self) -> None:
        """Puts the current item on the screen, or that there is none left."""
        sitting = self.sitting
        texts = [shown(side.text) or "(nothing)" for side in sitting.sides]
        is_over = sitting.item is None
        number = f"{sitting.done + 1} of {sitting.total}"
        self._put("progress", f"all {sitting.total} are judged" if is_over else number)
        self._put("prompt-text", self._prompt())
        for i in range(2 if self.pairs else 1):
            self._put(f"response-{i}", "" if is_over else texts[i])
        for pane in self.query(VerticalScroll):
            pane.scroll_home(animate=False)
        kept = f"your answer: {shown(sitting.correction)}" if sitting.correction else ""
        self._put("note", " ".join(filter(None, (self._note, kept))))
        self._note = ""
        self.refresh_bindings()

    def _prompt(self) -> str:
        """The instruction, and the expected answer where that is shown."""
        item = self.sitting.item
        if item is None:
            return "Nothing is left to judge: u takes the newest judgment back, q ends."
        prompt = item.prompt if isinstance(item.prompt, str) else tuple(item.prompt)
        text = shown(prompt if isinstance(prompt, str) else render_prompt(prompt))
        if self.show_reference and item.reference is not None:
            text += f"\n\nexpected: {shown(str(item.reference))}"
        return text

    def _put(self, name: str, text: str) -> None:
        """Shows text as it is: a response cannot style the screen."""
        self.query_one(f"#{name}", Static).update(Text(text))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While an answer is written, keys are letters of it; at the end nothing is judged."""
        if action in ("save", "close_editor"):
            return self._is_writing
        if action in _JUDGING and self.sitting.item is None:
            return False
        return not (action in (*_JUDGING, *_ANY_TIME) and self._is_writing)

    def action_prefer(self, side: int) -> None:
        """One side is better."""
        self.sitting.prefer(side)
        self._show()

    def action_tie(self) -> None:
        """Both are equal."""
        self.sitting.tie()
        self._show()

    def action_score(self, score: int) -> None:
        """The response gets a score."""
        self.sitting.score(score)
        self._show()

    def action_skip(self) -> None:
        """Nothing is said."""
        self.sitting.skip()
        self._show()

    def action_undo(self) -> None:
        """The newest judgment is taken back."""
        taken = self.sitting.undo()
        self._note = f"taken back: {_said(taken)}" if taken else "there is nothing to take back"
        self._show()

    def action_scroll(self, what: str, way: str) -> None:
        """Moves the instruction, or all responses together."""
        for pane in self.query(f".{what}").results(VerticalScroll):
            getattr(pane, f"scroll_{way}")(animate=False)

    def action_write(self, side: int) -> None:
        """Opens the editor on what was written, else on a response that was shown."""
        editor = self.query_one("#editor", TextArea)
        editor.text = self.sitting.correction or _editable(self.sitting.sides[side].text)
        editor.display = True
        editor.focus()
        editor.select_all()
        self.refresh_bindings()

    def action_save(self) -> None:
        """Keeps what was written; the item still waits for its judgment."""
        self.sitting.correct(self.query_one("#editor", TextArea).text)
        self.action_close_editor()

    def action_close_editor(self) -> None:
        """Closes the editor."""
        self.query_one("#editor").display = False
        self.set_focus(None)
        self.refresh_bindings()
        self._show()

    def action_leave(self) -> None:
        """Ends the sitting; the same command goes on."""
        self.exit()


def _editable(text: str) -> str:
    """Text without control characters, by which a response could steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _said(judgment: Judgment) -> str:
    """A judgment in the words of its key, which do not say whose response was better."""
    if judgment.winner is not None:
        return ("first better", "second better")[judgment.shown.index(judgment.winner)]
    return {"tie": "equal", "score": str(judgment.score)}.get(judgment.kind, judgment.kind)
