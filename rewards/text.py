"""One way to read text, whatever form a prompt, completion or reference arrives in.

Responses come as a string, as a list of chat messages, or as messages whose content is a list of
parts. Guessing wrongly makes a reward compare against ``"[{'role': ..."`` and score zero for ever,
so every reward reads them through this module.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from instructrec.errors import ConfigError, DataError, did_you_mean

Normalisation = Literal["none", "strip", "casefold", "squad"]
"""How two texts are made comparable; see ``normalise_text``."""

NORMALISATIONS: tuple[str, ...] = ("none", "strip", "casefold", "squad")
"""Every normalisation, from the strictest to the most forgiving."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def completion_text(completion: Any) -> str:
    """Returns the plain text of one response.

    Args:
        completion: A string; a chat message; or a list of chat messages, of which those of the
            assistant are joined by line breaks (all of them when none carries that role). The
            content of a message is a string, None, or a list of parts; parts that are not text
            are left out.

    Raises:
        DataError: When it is none of these.
    """
    if isinstance(completion, str):
        return completion
    messages = _as_messages(completion, "completion")
    if not messages:
        return ""
    spoken = [message for message in messages if message.get("role") == "assistant"]
    return "\n".join(_content_text(message) for message in spoken or messages)


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """Returns the plain text of B responses; see ``completion_text``."""
    return [c if isinstance(c, str) else completion_text(c) for c in completions]


def prompt_text(prompt: Any) -> str:
    """Returns one instruction as plain text.

    A string stays as it is, a conversation of one message becomes its content, and a longer one
    becomes ``role: content`` lines.

    Raises:
        DataError: When it is neither a string nor chat messages.
    """
    if isinstance(prompt, str):
        return prompt
    messages = _as_messages(prompt, "prompt")
    if len(messages) == 1:
        return _content_text(messages[0])
    return "\n".join(f"{m.get('role', 'user')}: {_content_text(m)}" for m in messages)


def prompt_messages(prompt: Any) -> list[dict[str, Any]]:
    """Returns one instruction as chat messages; a string becomes one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in _as_messages(prompt, "prompt")]


def completion_messages(completion: Any) -> list[dict[str, Any]]:
    """Returns one response as chat messages; a string becomes one assistant message."""
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return [dict(message) for message in _as_messages(completion, "completion")]


def reference_texts(reference: Any, reward: str, index: int) -> list[str] | None:
    """Returns the expected answers of one sample.

    Args:
        reference: A string, several strings, or None.
        reward: Name of the reward that asks, for the error.
        index: Position of the sample in the batch, for the error.

    Returns:
        The answers; None when the sample has none (None or an empty list).

    Raises:
        DataError: When it is anything else, e.g. a number.
    """
    if reference is None:
        return None
    if isinstance(reference, str):
        return [reference]
    values = reference.tolist() if hasattr(reference, "tolist") else reference
    if isinstance(values, Sequence) and all(isinstance(value, str) for value in values):
        return list(values) or None
    raise DataError(
        f"reward {reward!r}: the reference of sample {index} is {reference!r} "
        f"({type(reference).__name__}); expected a string or a list of strings. "
        "Write numbers as text, the way a correct response spells them."
    )


def normalise_text(text: str, how: str = "strip") -> str:
    """Makes texts comparable.

    Args:
        text: Any string.
        how: ``none`` keeps every character; ``strip`` removes outer white space; ``casefold`` also
            ignores case and the Unicode form of accented letters; ``squad`` lowers the case, drops
            ASCII punctuation and the articles a, an and the, and collapses white space, as the
            SQuAD question-answering benchmark does.

    Raises:
        ConfigError: When ``how`` is none of these.
    """
    return normaliser(how)(text)


def normaliser(how: str) -> Callable[[str], str]:
    """Returns the function that makes a text comparable; ``how`` as for ``normalise_text``."""
    if how in _NORMALISERS:
        return _NORMALISERS[how]
    raise ConfigError(
        f"normalise = {how!r}: expected one of {', '.join(NORMALISATIONS)}."
        f"{did_you_mean(str(how), NORMALISATIONS)}"
    )


def _casefold(text: str) -> str:
    if text.isascii():
        return text.lower().strip()
    # Folding can undo the composed form, so letters are brought to one form on both sides.
    folded = unicodedata.normalize("NFD", text).casefold()
    return unicodedata.normalize("NFC", folded).strip()


def _squad(text: str) -> str:
    words = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(words.split())


_NORMALISERS: dict[str, Callable[[str], str]] = {
    "none": str,
    "strip": str.strip,
    "casefold": _casefold,
    "squad": _squad,
}


def _as_messages(value: Any, kind: str) -> list[Mapping[str, Any]]:
    messages = [value] if isinstance(value, Mapping) else value
    listed = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
    if listed and all(isinstance(m, Mapping) and "content" in m for m in messages):
        return list(messages)
    raise DataError(
        f"a {kind} is {str(value)[:80]!r} ({type(value).__name__}); expected a string or a list of "
        "chat messages such as {'role': 'assistant', 'content': '...'}."
    )


def _content_text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if content is None:  # a message that only calls a tool
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Mapping | str) for part in content):
        return "".join(
            part if isinstance(part, str) else str(part.get("text") or "") for part in content
        )
    raise DataError(
        f"the content of a message is {str(content)[:80]!r} ({type(content).__name__}); expected a "
        "string or a list of parts such as {'type': 'text', 'text': '...'}."
    )
