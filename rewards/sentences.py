"""Counting sentences by rule, with neither a trained model nor its data."""

from __future__ import annotations

import re

# What follows these is the same sentence, whatever it looks like.
_TITLES = re.compile(
    r"mr|mrs|ms|dr|prof|sr|jr|st|gen|col|capt|lt|sgt|rev|hon|vs|fig|e\.g|i\.e|cf|al|approx"
)
# These end a sentence unless a small letter follows.
_SHORT_FORMS = re.compile(r"etc|inc|ltd|co|corp|dept|est|a\.m|p\.m|u\.s|u\.k|ph\.d|b\.c|a\.d")
_OPENING = "\"'\u201c\u2018([*_"
_CLOSING = "\"'\u201d\u2019)]}\xbb*_"
_ENDS = ".!?\u2026"
_WIDE_END = re.compile("[\u3002\uff01\uff1f]+")  # the full-width forms of . ! ?
_MARKER = re.compile(r"\(?(?:\d+|[A-Za-z])[.)]")  # "1." in front of a list's item


def num_sentences(text: str) -> int:
    """Counts the sentences of a text.

    A sentence ends at ``.``, ``!``, ``?`` or ``…`` before white space (closing quotes and brackets
    may stand between), at their full-width forms anywhere, and before the number of a list item.
    Titles, initials and common short forms end none. What is left at the end counts as one, and a
    sentence without a letter or digit as none. Line breaks alone separate nothing.
    """
    words = [
        (word, place == 0) for line in text.split("\n") for place, word in enumerate(line.split())
    ]
    count, is_open = 0, False
    for i, (word, begins_line) in enumerate(words):
        if begins_line and i + 1 < len(words) and _MARKER.fullmatch(word):
            count += is_open
            is_open = False
            continue
        *closed, rest = _WIDE_END.split(word)
        for piece in closed:
            count += is_open or _has_content(piece)
            is_open = False
        is_open = is_open or _has_content(rest)
        following = words[i + 1][0] if i + 1 < len(words) else ""
        if is_open and _ends_sentence(rest, following):
            count += 1
            is_open = False
    return count + is_open


def _has_content(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _ends_sentence(word: str, following: str) -> bool:
    core = word.rstrip(_CLOSING)
    stem = core.rstrip(_ENDS)
    if stem == core:
        return False
    stem = stem.lstrip(_OPENING).lower()
    goes_on = following.lstrip(_OPENING)[:1].islower()
    if core[-1] == "." and not core.endswith(".."):
        initial = len(stem) == 1 and stem.isalpha() and stem != "i" and following != ""
        return not (
            initial or _TITLES.fullmatch(stem) or (_SHORT_FORMS.fullmatch(stem) and goes_on)
        )
    return not (core.endswith(("..", "\u2026")) and goes_on)
