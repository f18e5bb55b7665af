"""Rewards for the form of a response: JSON, JSON of a schema, tags in order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.options import check_option
from instructrec.rewards.text import completion_texts

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Top = Literal["any", "object", "array"]
"""What the outermost JSON value must be."""
Rest = Literal["none", "after", "anywhere"]
"""Where text may stand outside of the tags."""

_TYPES: dict[str, type] = {"any": object, "object": dict, "array": list}
_TAG = re.compile(r"[^\W\d][\w.-]*")
_NOTHING = object()  # None is JSON's null


def json_valid(
    completions: Sequence[Any],
    *,
    top: Top = "any",
    fenced: bool = False,
    **columns: Any,
) -> list[float]:
    """1.0 where a response is JSON (RFC 8259) and nothing else, else 0.0.

    NaN and Infinity are not JSON. What is nested deeper than Python's parser can follow (hundreds
    of levels) counts as invalid.

    Args:
        completions: B responses.
        top: Whether the outermost value may be ``any``, or must be an ``object`` or ``array``.
        fenced: Whether the JSON may also stand in a Markdown code block.
        **columns: Not read.

    Returns:
        B scores in {0, 1}.

    Raises:
        ConfigError: When ``top`` is not one of its choices.
    """
    check_option("json_valid", "top", top, Top)
    scores = []
    for text in completion_texts(completions):
        value = _read_json(text, fenced)
        scores.append(float(value is not _NOTHING and isinstance(value, _TYPES[top])))
    return scores


class JsonSchema:
    """1.0 where a response is JSON that fits a schema, else 0.0; judged by the library jsonschema.

    A schema may refer to its own parts and to the drafts of JSON Schema; nothing is fetched from
    the network. Its patterns are matched by Python's ``re``, without a time limit.

    Args:
        schema: The schema, as a mapping or as JSON text; without it, each sample has its own in the
            column ``schema``. (In columns JSON text is safer: data files add the keys of one row to
            all others.)
        fenced: Whether the JSON may also stand in a Markdown code block.

    Raises:
        ConfigError: When the schema is not one.
    """

    __name__ = "json_schema"

    def __init__(
        self, schema: Mapping[str, Any] | str | None = None, *, fenced: bool = False
    ) -> None:
        self.fenced = fenced
        self.schema = None
        if schema is not None:
            try:
                self.schema = _schema_text(schema)
                _validator(self.schema)
            except ValueError as error:
                raise ConfigError(f"reward 'json_schema': option schema: {error}.") from None

    def __call__(
        self,
        completions: Sequence[Any],
        schema: Sequence[Mapping[str, Any] | str | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses; ``schema`` is the column of that name, where there is one.

        Returns:
            B scores in {0, 1}; None where the sample has no schema.

        Raises:
            ConfigError: When there is neither the option nor the column ``schema``.
            DataError: When a schema of the column is not one, or a schema refers elsewhere.
        """
        if self.schema is None and schema is None:
            raise ConfigError(
                "reward 'json_schema' has no schema: set its option schema, or give the data a "
                "column 'schema' (schema_column names another one)."
            )
        scores: list[float | None] = []
        for i, text in enumerate(completion_texts(completions)):
            wanted = self.schema if self.schema is not None or schema is None else schema[i]
            scores.append(None if wanted is None else self._fits(text, wanted, i))
        return scores

    def _fits(self, text: str, schema: Mapping[str, Any] | str, index: int) -> float:
        from referencing.exceptions import Unresolvable

        value = _read_json(text, self.fenced)
        try:
            validator = _validator(_schema_text(schema))
            return float(value is not _NOTHING and validator.is_valid(value))
        except RecursionError:
            return 0.0
        except (ValueError, Unresolvable) as error:
            problem = f"it refers to {error}" if isinstance(error, Unresolvable) else str(error)
            raise DataError(
                f"reward 'json_schema': the schema of sample {index}: {problem}. Expected a JSON "
                "Schema that holds all that it refers to."
            ) from None


class XmlTags:
    """1.0 where a response consists of certain tags in order, each exactly once, else 0.0.

    The default, ``think`` and then ``answer``, is the format in which DeepSeek-R1 was trained to
    reason; ``tags: [think]`` with ``rest: after`` is thinking followed by a free answer.

    Args:
        tags: Names of the tags in order; ``think`` and ``answer`` when not set.
        rest: Whether, besides white space, ``none`` may stand outside of the tags, or text
            ``after`` the last one, or ``anywhere``.
        opened: Whether the chat template has opened the first tag already, so that the response
            starts inside it.
        blank: Whether a tag may hold nothing but white space.
        partial: Whether the score is the share of what is right (each tag counts one, what stands
            outside of them one) instead of all or nothing.

    Raises:
        ConfigError: When a tag's name cannot be one, or comes twice.
    """

    __name__ = "xml_tags"

    def __init__(
        self,
        tags: Sequence[str] | None = None,
        *,
        rest: Rest = "none",
        opened: bool = False,
        blank: bool = False,
        partial: bool = False,
    ) -> None:
        check_option("xml_tags", "rest", rest, Rest)
        names = ["think", "answer"] if tags is None else tags
        listed = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        if not listed or not names or not all(map(_TAG.fullmatch, names)):
            raise ConfigError(
                f"reward 'xml_tags': tags = {tags!r}: expected a list of names such as "
                "['think', 'answer'], without brackets."
            )
        if len({*names}) < len(names):
            raise ConfigError(f"reward 'xml_tags': tags = {tags!r}: each name may come once.")
        self.tags = list(names)
        self.rest = rest
        self.opened = opened
        self.blank = blank
        self.partial = partial

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Returns B scores in {0, 1}, with ``partial`` in [0, 1]; reads no columns."""
        return [self._score(text) for text in completion_texts(completions)]

    def _score(self, text: str) -> float:
        if self.opened:
            text = f"<{self.tags[0]}>{text}"
        right = position = 0
        outside = []
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            start = text.find(opening, position)
            end = text.find(closing, start + len(opening))
            if start < 0 or end < 0 or text.count(opening) + text.count(closing) > 2:
                continue
            right += self.blank or bool(text[start + len(opening) : end].strip())
            outside.append(text[position:start])
            position = end + len(closing)
        found_all = len(outside) == len(self.tags)
        if self.rest == "none":
            outside.append(text[position:])
        blank_outside = self.rest == "anywhere" or not "".join(outside).strip()
        share = (right + (found_all and blank_outside)) / (len(self.tags) + 1)
        return share if self.partial else float(share == 1)


def _read_json(text: str, fenced: bool) -> Any:
    """Returns the value that a text stands for, ``_NOTHING`` when it is not JSON."""
    if fenced:
        block = re.fullmatch(r"\s*```[\w-]*[ \t]*\n(.*)\n[ \t]*```\s*", text, flags=re.DOTALL)
        text = block[1] if block else text
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=_integer)
    except (ValueError, RecursionError):
        return _NOTHING


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int | float:
    return (
        int(digits) if len(digits) < 1000 else float(digits)
    )  # Python refuses to read longer ones


def _schema_text(schema: Mapping[str, Any] | str) -> str:
    if isinstance(schema, str):
        return schema
    if isinstance(schema, Mapping):
        return json.dumps(dict(schema))
    raise ValueError(f"expected a mapping or JSON text, not {type(schema).__name__}")


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Validator:
    """Returns what judges values by a schema; ValueError when it is not one."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise ValueError(f"{schema[:60]!r} is not JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"a schema is an object, not {type(parsed).__name__}")
    kind = validator_for(parsed, default=Draft202012Validator)
    try:
        kind.check_schema(parsed)
    except SchemaError as error:
        raise ValueError(f"not a JSON Schema: {error.message}") from None
    return kind(parsed, registry=Registry())  # an empty registry fetches nothing
