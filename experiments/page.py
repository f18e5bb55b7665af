"""Pages for the browser: one file that works without a network, every text of it escaped.

What policies wrote is shown as text and never becomes markup. The one script is fixed, and the
page's content-security policy allows it by its hash and nothing else.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_ASSETS = Path(__file__).parent
LONGEST = 8_000
"""Most characters of one text of an instruction or a response that a page shows."""
COMPARED = 2_000
"""Longest text whose new words are marked: looking for them takes the square of its length."""
_BIDI = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def text(value: object) -> str:
    """Text as HTML; control characters, which could reorder what is read, become visible."""
    shown = "".join(
        c if c in "\n\t" or (c.isprintable() and c not in _BIDI) else f"\\u{ord(c):04x}"
        for c in str(value)
    )
    return html.escape(shown)


def document(title: str, body: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        body: Blocks of HTML; empty ones are left out.
    """
    script = (_ASSETS / "page.js").read_text(encoding="utf-8")
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>"
        + "\n".join(part for part in body if part)
        + f"</main><script>{script}</script></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Content under a heading; nothing without content."""
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def bullets(lines: Sequence[str], kind: str = "") -> str:
    """Sentences as a list; nothing without any.

    Args:
        lines: Plain texts.
        kind: Class of the list.
    """
    items = "".join(f"<li>{text(line)}" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values without a head.

    Args:
        rows: Plain texts.
    """
    lines = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows)
    return f"<div class=wide><table class=facts><tbody>{lines}</tbody></table></div>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    kind: str = "",
    *,
    titles: Mapping[str, str] | None = None,
) -> str:
    """A table that sorts by a click on its head.

    Args:
        head: Plain texts.
        rows: Cells as HTML.
        kind: Class of the table; ``samples`` is what fields of `filters` look through.
        titles: Name in the head -> what it means, shown where a pointer rests on it.
    """
    known = titles or {}
    cells = "".join(
        f"<th{_title(known[name]) if name in known else ''}><button>{text(name)}</button></th>"
        for name in head
    )
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class=wide><table class="sortable {kind}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _title(meaning: str) -> str:
    return f' title="{text(meaning)}"'


def filters(choices: Mapping[int, tuple[str, Sequence[str]]] | None = None) -> str:
    """A search field for the table of samples in the same section, and menus for its columns.

    Args:
        choices: Number of a column -> its name and the texts that can be chosen.
    """
    menus = (
        f'<select data-column="{column}" aria-label="{text(name)}"><option value="">{text(name)}: '
        + "all</option>"
        + "".join(f"<option>{text(value)}</option>" for value in values)
        + "</select>"
        for column, (name, values) in (choices or {}).items()
        if len(values) > 1
    )
    search = '<input type="search" placeholder="only rows with ..." aria-label="filter rows">'
    return f"<div class=filters>{search}{''.join(menus)}<output></output></div>"


def long(value: object) -> str:
    """Text for a cell that needs room; it ends behind ``LONGEST`` characters, and says so."""
    return f"<div class=long>{text(shortened(str(value)))}</div>"


def shortened(value: str) -> str:
    """Text of at most ``LONGEST`` characters, and how many more there are."""
    more = len(value) - LONGEST
    return value if more <= 0 else f"{value[:LONGEST]} … ({more:,} more characters)"


def marked(first: str, second: str) -> str:
    """The second text as HTML; words that the first one lacks are marked.

    Long texts are cut as in `long`, and not marked.
    """
    if max(len(first), len(second)) > COMPARED:
        return text(shortened(second))
    a, words = first.split(), re.findall(r"\S+", second)
    spaces = re.split(r"\S+", second)  # one more than words: before, between and behind them
    matcher = difflib.SequenceMatcher(None, a, words, autojunk=False)
    parts = [text(spaces[0])]
    for kind, _, _, start, end in matcher.get_opcodes():
        between = [
            text(words[i]) + text(spaces[i + 1] if i + 1 < end else "") for i in range(start, end)
        ]
        if between:
            shown = "".join(between)
            parts.append(shown if kind == "equal" else f"<mark>{shown}</mark>")
            parts.append(text(spaces[end]))
    return "".join(parts)
