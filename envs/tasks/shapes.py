"""The usual shapes of instruction data, told by their columns and read into one form.

========== =================================== ==========================================
shape      columns                             instruction, expected answer
========== =================================== ==========================================
prompt     prompt [reference | references]     as they stand
messages   messages [reference | references]   without a reference, the assistant's last message
completion prompt, completion                  the completion is the answer
preference [prompt,] chosen, rejected          chosen is the answer, rejected stays a column
alpaca     instruction [, input] [, output]    instruction and input, a blank line between
sharegpt   conversations                       like messages; from/value or role/content
========== =================================== ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrec.envs.tasks.base import Message, Prompt
from instructrec.envs.tasks.rows import excerpt, parse_json
from instructrec.errors import DataError, did_you_mean

SHAPES = ("prompt", "messages", "completion", "preference", "alpaca", "sharegpt")
"""Names of the shapes."""

_OWN = ("id", "split", "prompt", "messages", "reference", "references")
_TAKEN = {
    "completion": ("completion",),
    "preference": ("chosen",),
    "alpaca": ("instruction", "input", "output"),
    "sharegpt": ("conversations",),
}
_JSON_CELLS = ("messages", "references", "conversations")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Sample:
    """What a row says, whatever its shape."""

    prompt: Prompt | None
    """The instruction; None where a template makes it of other columns."""
    reference: str | list[str] | None
    """The expected answer or answers; None where the row has none."""
    others: dict[str, Any]
    """The columns that are neither of these."""
    shape: str | None
    """One of `SHAPES`; None without a prompt."""


def map_columns(fields: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Renames the columns of a row.

    Args:
        fields: Column -> value.
        names: New name -> the file's own, or a path into it such as ``answers.text``.

    Raises:
        DataError: The row lacks a column that is to be renamed.
    """
    if not names:
        return fields
    taken = {name for name in names.values() if name in fields}
    renamed = {name: value for name, value in fields.items() if name not in taken}
    return renamed | {new: _find(fields, old, new) for new, old in names.items()}


def read_sample(
    fields: dict[str, Any], *, text_cells: bool = False, without_prompt: bool = False
) -> Sample:
    """Reads a row.

    Args:
        fields: Column -> value.
        text_cells: All values are text; lists are written as JSON.
        without_prompt: Accept a row of no known shape: a template makes its prompt.

    Raises:
        DataError: No shape fits, or a value is not what the shape expects.
    """
    if text_cells:
        fields = _with_lists(fields)
    shape = _shape_of(fields)
    if shape is None and not without_prompt:
        raise DataError(_no_shape(fields))
    prompt, answer = _take(fields, shape)
    given = _given_reference(fields)
    own = {*_OWN, *_TAKEN.get(shape or "", ())}
    if given is not None:
        own -= {"output"}  # it is not the answer then
    others = {name: value for name, value in fields.items() if name not in own}
    if shape == "preference":
        others["rejected"] = _answer_text(fields["rejected"], "rejected")
    return Sample(prompt, given if given is not None else answer, others, shape)


def _find(fields: dict[str, Any], old: str, new: str) -> Any:
    if old in fields:
        return fields[old]
    value: Any = fields
    for step in old.split("."):
        if not isinstance(value, dict) or step not in value:
            hint = did_you_mean(old, fields)
            raise DataError(
                f"no column {old!r}, which columns names as {new!r}.{hint} "
                f"Its columns are {list(fields)}"
            )
        value = value[step]
    return value


def _shape_of(fields: dict[str, Any]) -> str | None:
    has = {name for name, value in fields.items() if value is not None}
    pair = {"chosen", "rejected"} <= has and not has & {"reference", "references"}
    if {"prompt", "messages"} & has:
        if pair:
            return "preference"
        if "completion" in has and not has & {"reference", "references"}:
            return "completion"
        return "prompt" if "prompt" in has else "messages"
    if pair:
        return "preference"
    if "conversations" in has:
        return "sharegpt"
    return "alpaca" if "instruction" in has else None


def _no_shape(fields: dict[str, Any]) -> str:
    known = {"prompt", "messages", "instruction", "conversations"}
    hint = "" if known & fields.keys() else did_you_mean("prompt", fields)
    return (
        f"no column 'prompt' or 'messages' with a value, and neither instruction, conversations "
        f"nor chosen and rejected.{hint} Its columns are {list(fields)}; name the one that holds "
        "the instruction with columns: {prompt: ...}"
    )


def _take(
    fields: dict[str, Any], shape: str | None
) -> tuple[Prompt | None, str | list[str] | None]:
    """Returns the prompt, and the answer that belongs to the shape."""
    if shape is None:
        return None, None
    if shape == "alpaca":
        return _alpaca_prompt(fields), _optional_answer(fields.get("output"))
    if shape == "sharegpt":
        return _split_last(_messages(fields["conversations"], "conversations"), fields)
    if shape == "preference" and fields.get("prompt") is None and fields.get("messages") is None:
        return _common_prompt(fields)
    prompt = _prompt(fields)
    if shape == "completion":
        return prompt, _answer_text(fields["completion"], "completion")
    if shape == "preference":
        return prompt, _answer_text(fields["chosen"], "chosen")
    if isinstance(prompt, tuple):
        return _split_last(prompt, fields)
    return prompt, None


def _prompt(fields: dict[str, Any]) -> Prompt:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if prompt is not None and messages is not None:
        raise DataError("expected either 'prompt' or 'messages', found both")
    if isinstance(prompt, str):
        return _filled(prompt, "prompt")
    if prompt is None:
        return _messages(messages, "messages")
    return _messages(prompt, "prompt")


def _filled(text: str, name: str) -> str:
    if not text.strip():
        raise DataError(f"the {name} is empty")
    return text


def _alpaca_prompt(fields: dict[str, Any]) -> str:
    instruction, given = fields["instruction"], fields.get("input")
    for name, value in (("instruction", instruction), ("input", given)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"{name!r} is {excerpt(repr(value))}; expected a string")
    instruction = _filled(instruction, "instruction")
    return f"{instruction}\n\n{given}" if given and given.strip() else instruction


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{field!r} is {excerpt(repr(value))}; expected "
            + ("a string or a list" if field == "prompt" else "a list")
            + " of messages like {'role': 'user', 'content': '...'}"
        )
    return tuple(_message(message, field) for message in value)


def _message(message: Any, field: str) -> Message:
    names = ("role", "content")
    if field == "conversations" and isinstance(message, dict) and "from" in message:
        names = ("from", "value")
    if not isinstance(message, dict) or not all(isinstance(message.get(n), str) for n in names):
        raise DataError(
            f"a message of {field!r} is {excerpt(repr(message))}; expected an object whose "
            f"{names[0]!r} and {names[1]!r} are strings"
        )
    role, content = (message[n] for n in names)
    if field == "conversations":
        role = _ROLES.get(role, role)
        if role not in _KNOWN_ROLES:
            raise DataError(
                f"a message of 'conversations' is from {role!r}; expected one of "
                f"{', '.join([*_KNOWN_ROLES, *_ROLES])}"
            )
    return {"role": role, "content": content}


def _split_last(
    messages: tuple[Message, ...], fields: dict[str, Any]
) -> tuple[tuple[Message, ...], str | None]:
    """Takes the assistant's last message off as the answer, unless the row has a reference."""
    if messages[-1]["role"] != "assistant":
        return messages, None
    if len(messages) == 1 or any(fields.get(n) is not None for n in ("reference", "references")):
        raise DataError(
            "the conversation ends with the assistant's answer; end it where the response begins "
            "and move the answer to 'reference' (without a reference, the last message is taken "
            "as it, when an instruction comes before)"
        )
    return messages[:-1], messages[-1]["content"]


def _common_prompt(fields: dict[str, Any]) -> tuple[tuple[Message, ...], str]:
    if not all(isinstance(fields[name], list) for name in ("chosen", "rejected")):
        raise DataError(
            "chosen and rejected are given without a prompt; expected a column 'prompt', or both "
            "as conversations that begin alike"
        )
    chosen, rejected = (_messages(fields[name], name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise DataError(
            "chosen and rejected must be alike up to their last message, which is the answer, and "
            "begin with the instruction"
        )
    return chosen[:-1], _answer_text(fields["chosen"], "chosen")


def _answer_text(value: Any, field: str) -> str:
    """An answer given as text, or as a conversation that ends with it."""
    if isinstance(value, str):
        return value
    last = _messages(value, field)[-1]
    if last["role"] != "assistant":
        raise DataError(f"{field!r} ends with a message of {last['role']!r}, not the assistant's")
    return last["content"]


def _optional_answer(value: Any) -> str | None:
    return None if value is None else _answer(value)


def _given_reference(fields: dict[str, Any]) -> str | list[str] | None:
    """Returns ``reference`` (a string or list) or ``references`` (always a list)."""
    one, several = fields.get("reference"), fields.get("references")
    if one is None and several is None:
        return None
    if one is not None and several is not None:
        raise DataError("expected either 'reference' or 'references', found both")
    if several is not None and not isinstance(several, list):
        raise DataError(
            f"'references' is {excerpt(repr(several))}; expected a list of strings (a single one "
            "goes under 'reference')"
        )
    value = one if several is None else several
    answers: Sequence[Any] = value if isinstance(value, list) else [value]
    if not answers:
        raise DataError("the list of references is empty")
    texts = [_answer(answer) for answer in answers]
    return texts if isinstance(value, list) else texts[0]


def _answer(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"a reference is {excerpt(repr(value))}; expected a string, a number or a list"
        )
    return value


def _with_lists(fields: dict[str, Any]) -> dict[str, Any]:
    """Parses the cells that can only hold lists."""
    found = dict(fields)
    for name in _JSON_CELLS:
        if isinstance(value := fields.get(name), str):
            try:
                found[name] = parse_json(value)
            except DataError as error:
                raise DataError(f"column {name!r}: {error}") from error
    return found
