"""Constraints that a program can check: the 25 of IFEval, a few more, and those that users add.

IFEval is Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"
(arXiv:2311.07911, table 1). A check reads one response and the settings that the data gives, and
says whether the response follows. Where a rule of the benchmark's own program needs a trained model
or can be satisfied by accident, the docstring of the check says how it is decided here. Every check
takes time linear in the text, whatever the text is.
"""

from __future__ import annotations

import inspect
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

from instructrec.errors import ConfigError, DataError, unknown_name
from instructrec.rewards.language import detected_language
from instructrec.rewards.options import bind
from instructrec.rewards.sentences import num_sentences as _num_sentences

_F = TypeVar("_F", bound=Callable[..., bool])

Relation = Literal["less than", "at least", "at most", "more than", "exactly"]
"""How a count is compared; IFEval itself uses the first two."""

_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "less than": operator.lt,
    "at least": operator.ge,
    "at most": operator.le,
    "more than": operator.gt,
    "exactly": operator.eq,
}
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_checks: dict[str, Callable[..., bool]] = {}
_full_names: dict[str, str] = {}


def register_constraint(name: str) -> Callable[[_F], _F]:
    """Registers a check under ``group:name``; data may leave the group out.

    Example::

        @register_constraint("style:no_exclamation")
        def no_exclamation(text: str) -> bool:
            return "!" not in text

    Settings are keyword-only parameters with annotations; a parameter ``prompt`` gets the
    instruction's text.

    Raises:
        ConfigError: When the name has no group, or another check has its last part.
    """
    group, colon, short = name.partition(":")
    if not (group and colon and short) or _full_names.get(short, name) != name:
        raise ConfigError(
            f"register_constraint({name!r}): expected 'group:name' with a name that no other "
            f"constraint has ({', '.join(sorted(_full_names))})."
        )

    def decorate(check: _F) -> _F:
        _checks[name] = check
        _full_names[short] = name
        return check

    return decorate


def list_constraints() -> list[str]:
    """Returns the full name of every constraint, sorted."""
    return sorted(_checks)


def full_name(name: str) -> str:
    """Returns ``group:name`` of a constraint given with or without its group.

    Raises:
        DataError: When there is none; the message names those that exist.
    """
    found = _full_names.get(name, name)
    if found not in _checks:
        raise DataError(unknown_name("constraint", name.rpartition(":")[2], _full_names))
    return found


def bound_check(name: str, settings: Mapping[str, Any], prompt: str) -> Callable[[str], bool]:
    """Returns a check with its settings in place.

    Args:
        name: With or without its group.
        settings: Values by name; None counts as not given, as in IFEval's own data.
        prompt: The instruction, for checks that compare with it.

    Raises:
        DataError: When the name or a setting is unknown, missing or of the wrong type.
    """
    name = full_name(name)
    check, parameters = _checks[name], _parameters(_checks[name])
    # Tables turn whole numbers into 3.0 where another row has none.
    given = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in settings.items()
        if value is not None
    }
    try:
        bind(name, check, given, constructs=False)
    except ConfigError as error:
        raise DataError(str(error).replace("reward ", "constraint ", 1)) from None
    if "prompt" in parameters:
        given.setdefault("prompt", prompt)
    missing = [key for key, needed in parameters.items() if needed and key not in given]
    if missing:
        raise DataError(
            f"constraint {name!r} lacks the setting {', '.join(map(repr, missing))}; "
            f"given: {dict(settings)!r}."
        )
    return lambda text: bool(text.strip()) and check(text, **given)


@cache
def _parameters(check: Callable[..., bool]) -> dict[str, bool]:
    """Settings of a check -> whether the data must give them."""
    parameters = list(inspect.signature(check).parameters.values())[1:]
    return {p.name: p.default is p.empty for p in parameters}


@cache
def _word_tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # a second, and little data asks for it

    return NLTKWordTokenizer()


def _compare(count: int, relation: str, threshold: int) -> bool:
    return _RELATIONS[relation](count, threshold)


def _texts(values: Any, setting: str) -> list[str]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, list | tuple) and listed:
        texts = [value.strip() for value in listed if isinstance(value, str)]
        if all(texts) and len(texts) == len(listed):
            return texts
    raise DataError(f"{setting} = {values!r}: expected a list of texts that are not blank.")


def _text(value: str, setting: str) -> str:
    if not value.strip():
        raise DataError(f"{setting} = {value!r}: expected a text that is not blank.")
    return value.strip()


@register_constraint("keywords:existence")
def existence(text: str, *, keywords: list[str]) -> bool:
    """Every keyword occurs, in any case and also inside longer words; keywords are plain text."""
    folded = text.casefold()
    return all(word.casefold() in folded for word in _texts(keywords, "keywords"))


@register_constraint("keywords:frequency")
def frequency(text: str, *, keyword: str, frequency: int, relation: Relation = "at least") -> bool:
    """The keyword occurs so often, in any case and also inside longer words."""
    count = text.casefold().count(_text(keyword, "keyword").casefold())
    return _compare(count, relation, frequency)


@register_constraint("keywords:forbidden_words")
def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word, in any case."""
    words = "|".join(re.escape(word) for word in _texts(forbidden_words, "forbidden_words"))
    return re.search(rf"(?<!\w)(?:{words})(?!\w)", text, flags=re.IGNORECASE) is None


@register_constraint("keywords:letter_frequency")
def letter_frequency(
    text: str, *, letter: str, let_frequency: int, let_relation: Relation = "at least"
) -> bool:
    """One character, in any case, occurs so often."""
    if len(letter) != 1:
        raise DataError(f"letter = {letter!r}: expected one character.")
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


@register_constraint("length_constraints:number_words")
def number_words(text: str, *, num_words: int, relation: Relation = "at least") -> bool:
    """So many runs of letters, digits and underscores."""
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


@register_constraint("length_constraints:number_sentences")
def number_sentences(text: str, *, num_sentences: int, relation: Relation = "at least") -> bool:
    """So many sentences, split by ``sentences.num_sentences`` (IFEval uses a trained splitter)."""
    return _compare(_num_sentences(text), relation, num_sentences)


@register_constraint("length_constraints:number_characters")
def number_characters(text: str, *, num_characters: int, relation: Relation = "at most") -> bool:
    """So many characters without the outer white space; not in IFEval."""
    return _compare(len(text.strip()), relation, num_characters)


@register_constraint("length_constraints:number_lines")
def number_lines(text: str, *, num_lines: int, relation: Relation = "exactly") -> bool:
    """So many lines that are not blank; not in IFEval."""
    count = sum(bool(line.strip()) for line in text.split("\n"))
    return _compare(count, relation, num_lines)


@register_constraint("length_constraints:number_paragraphs")
def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs between the dividers ``***``, none of them blank."""
    parts = text.split("***")
    outer = (0, len(parts) - 1)
    if any(not part.strip() for i, part in enumerate(parts) if i not in outer):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


@register_constraint("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """So many paragraphs between blank lines, of which the n-th (from 1) begins with the word."""
    blocks = text.split("\n\n")
    count = sum(bool(block.strip()) for block in blocks)
    if count != num_paragraphs or not 1 <= nth_paragraph <= count:
        return False
    words = blocks[nth_paragraph - 1].split()
    if not words:
        return False
    found = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
    return found.lower() == _text(first_word, "first_word").lower()


@register_constraint("detectable_content:number_placeholders")
def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, such as ``[address]``."""
    count = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start)) >= 0:
            count += 1
            start = line.find("[", end)
    return count >= num_placeholders


@register_constraint("detectable_content:postscript")
def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker of a postscript occurs, in any case; P.S. and P.P.S may hold single spaces."""
    marker = _text(postscript_marker, "postscript_marker")
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(spaced.get(marker, re.escape(marker.lower())), text.lower()) is not None


@register_constraint("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that begin with ``-`` or one ``*``."""
    lines = [line.lstrip() for line in text.split("\n")]
    bullets = [n for n in lines if n[:1] == "-" or (n[:1] == "*" and n[:2] != "**")]
    return len(bullets) == num_bullets


@register_constraint("detectable_format:constrained_response")
def constrained_response(text: str, *, options: Sequence[str] = _ANSWERS) -> bool:
    """One of the options occurs: by default "My answer is yes.", "... no." or "... maybe."."""
    return any(option in text for option in _texts(options, "options"))


@register_constraint("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many parts in ``*one*`` or ``**two**`` asterisks, within a line, not blank."""
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


@register_constraint("detectable_format:multiple_sections")
def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings of the word and a number, such as ``Section 1``."""
    word = re.escape(_text(section_spliter, "section_spliter"))
    return len(re.findall(rf"{word}\s?\d+", text)) >= num_sections


@register_constraint("detectable_format:json_format")
def json_format(text: str) -> bool:
    """The whole response is JSON, with or without a Markdown fence."""
    inner = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):  # deep nesting ends in a RecursionError
        return False
    return True


@register_constraint("detectable_format:title")
def title(text: str) -> bool:
    """A line holds a title in double angular brackets, such as ``<<poem of joy>>``."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and line[start : end + 2].strip("<>").strip() and end > start + 2:
            return True
    return False


@register_constraint("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different responses with ``******`` between them."""
    parts = text.split("******")
    outer = (0, len(parts) - 1)
    if any(not part.strip() for i, part in enumerate(parts) if i not in outer):
        return False
    responses = [part.strip() for part in parts if part.strip()]
    return len(responses) == 2 and responses[0] != responses[1]


@register_constraint("combination:repeat_prompt")
def repeat_prompt(text: str, *, prompt: str, prompt_to_repeat: str | None = None) -> bool:
    """The response begins with the request, word for word, in any case.

    Without ``prompt_to_repeat`` the request is the instruction itself.
    """
    request = _text(prompt_to_repeat or prompt, "prompt_to_repeat")
    return text.strip().lower().startswith(request.lower())


@register_constraint("startend:start_checker")
def start_checker(text: str, *, start_phrase: str) -> bool:
    """The response begins with the phrase, in any case; not in IFEval."""
    found = text.strip().strip('"').lower()
    return found.startswith(_text(start_phrase, "start_phrase").lower())


@register_constraint("startend:end_checker")
def end_checker(text: str, *, end_phrase: str) -> bool:
    """The response ends with the phrase, in any case."""
    return text.strip().strip('"').lower().endswith(_text(end_phrase, "end_phrase").lower())


@register_constraint("startend:quotation")
def quotation(text: str) -> bool:
    """The whole response stands in double quotation marks."""
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


@register_constraint("change_case:capital_word_frequency")
def capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: Relation = "at least"
) -> bool:
    """So many words all in capitals; words are nltk's, so hyphens and ``U.S.`` split none.

    IFEval also splits the text into sentences first, which needs a trained splitter and only says
    whether a full stop is a word of its own.
    """
    words = _word_tokenizer().tokenize(text)
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


@register_constraint("change_case:english_capital")
def english_capital(text: str) -> bool:
    """English, and no letter is small."""
    return text.isupper() and detected_language(text) == "en"


@register_constraint("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """English, and no letter is a capital."""
    return text.islower() and detected_language(text) == "en"


@register_constraint("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """There is no comma."""
    return "," not in text


@register_constraint("language:response_language")
def response_language(text: str, *, language: str) -> bool:
    """The response is in the language, an ISO 639-1 code as langdetect has it (``zh-cn``).

    A text without letters is in no language (the benchmark's program lets it pass).
    """
    found = detected_language(text)
    return found is not None and found == language
