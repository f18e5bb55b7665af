"""Prompt templates: an instruction made from the columns of a row."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instructrec.envs.tasks.base import Message, Prompt
from instructrec.envs.tasks.rows import excerpt
from instructrec.errors import ConfigError, DataError, did_you_mean, unknown_name

FewShotStyle = Literal["text", "turns"]
"""Examples as text in front of the instruction, or as turns of a conversation before it."""

_TEMPLATES = {
    "question": "Question: {prompt}\nAnswer:",
    "sections": "### Instruction\n{prompt}\n\n### Response\n",
    "only_answer": "{prompt}\nReply with the answer alone.",
    "step_by_step": "{prompt}\nThink step by step, then give the answer on a line of its own.",
}
_ANSWERS = ("reference", "references")


@dataclass(frozen=True)
class Template:
    """A text with columns in braces, e.g. ``"Translate into {language}: {prompt}"``."""

    text: str
    """The text; ``{{`` and ``}}`` stand for braces."""
    variables: tuple[str, ...]
    """The columns that it names, each once, in order."""

    @property
    def takes_prompt(self) -> bool:
        """Whether the row's own instruction goes into it."""
        return "prompt" in self.variables

    def render(self, prompt: Prompt | None, fields: Mapping[str, Any]) -> Prompt:
        """Fills in a row.

        Args:
            prompt: The row's own instruction. Of a conversation, the last message is replaced.
            fields: The columns of the row.

        Raises:
            DataError: The row lacks a column, or holds neither text nor a number there.
        """
        values = {name: _value(name, fields) for name in self.variables if name != "prompt"}
        if not self.takes_prompt:
            return self.text.format_map(values)
        if prompt is None:
            raise DataError("the template names 'prompt', but the row has no instruction")
        if isinstance(prompt, str):
            return self.text.format_map(values | {"prompt": prompt})
        *before, last = prompt
        content = self.text.format_map(values | {"prompt": last["content"]})
        return (*before, {"role": last["role"], "content": content})


def register_template(name: str, text: str) -> Template:
    """Makes a template known by a name; the same text again is fine.

    Raises:
        ConfigError: The name is taken by another text or holds a brace, or the text is malformed.
    """
    if "{" in name or not name:
        raise ConfigError(f"template name {name!r}: expected a name without braces")
    if _TEMPLATES.get(name, text) != text:
        raise ConfigError(f"a template named {name!r} exists already; choose another name")
    template = parse_template(text)
    _TEMPLATES[name] = text
    return template


def list_templates() -> dict[str, str]:
    """Returns name -> text of the templates that `find_template` knows."""
    return dict(sorted(_TEMPLATES.items()))


def find_template(spec: str) -> Template:
    """Returns a template by name, or parses a text that holds columns in braces.

    Raises:
        ConfigError: An unknown name or a malformed text.
    """
    if not isinstance(spec, str):
        raise ConfigError(f"template is {spec!r}; expected a name or a text such as '{{prompt}}'")
    if "{" in spec:
        return parse_template(spec)
    if spec not in _TEMPLATES:
        raise ConfigError(
            unknown_name("template", spec, _TEMPLATES)
            + " A template of your own is a text with columns in braces, such as 'Q: {prompt}'."
        )
    return parse_template(_TEMPLATES[spec])


def parse_template(text: str) -> Template:
    """Parses a template.

    Raises:
        ConfigError: Braces that do not match, anything but a column's name between them, no column
            at all, or the expected answer.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(
            f"template {excerpt(text)!r}: {error}; a brace itself is written {{{{ or }}}}"
        ) from error
    names = []
    for _, name, style, conversion in parts:
        if name is None:
            continue
        if style or conversion or not name.strip() or not set(name).isdisjoint(".[]"):
            raise ConfigError(
                f"template {excerpt(text)!r}: {{{name}}} is not the plain name of a column; "
                "a brace itself is written {{ or }}"
            )
        if name in _ANSWERS:
            raise ConfigError(
                f"template {excerpt(text)!r}: {{{name}}} would show the expected answer"
            )
        names.append(name)
    if not names:
        raise ConfigError(f"template {excerpt(text)!r} names no column, e.g. {{prompt}}")
    return Template(text, tuple(dict.fromkeys(names)))


def add_examples(
    prompt: Prompt, examples: Sequence[tuple[Prompt, str]], style: FewShotStyle
) -> Prompt:
    """Puts solved examples in front of an instruction.

    As text, an example is its instruction and its answer (behind a space where the instruction
    ends with a colon, else on a new line), and a blank line follows. As turns they stand before the
    first message that is not the system's.

    Raises:
        DataError: Examples as text, and a conversation among the prompts.
    """
    if style == "text":
        shown = [*(example for example, _ in examples), prompt]
        if not all(isinstance(p, str) for p in shown):
            raise DataError(
                "the instructions are conversations, which take no examples as text; set "
                "few_shot_style: turns"
            )
        return "\n\n".join([*(f"{p}{_joint(p)}{answer}" for p, answer in examples), str(prompt)])
    turns: list[Message] = []
    for example, answer in examples:
        asked = [m for m in _as_messages(example) if m["role"] != "system"]
        turns += [*asked, {"role": "assistant", "content": answer}]
    messages = _as_messages(prompt)
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return (*messages[:first], *turns, *messages[first:])


def _joint(prompt: Prompt) -> str:
    return " " if isinstance(prompt, str) and prompt.endswith(":") else "\n"


def _as_messages(prompt: Prompt) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def _value(name: str, fields: Mapping[str, Any]) -> str:
    if name not in fields:
        raise DataError(
            f"the template names {name!r}, which is no column.{did_you_mean(name, fields)} "
            f"Its columns are {list(fields)}"
        )
    value = fields[name]
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise DataError(
        f"the template names {name!r}, which is {excerpt(repr(value))}; expected text or a number"
    )
