"""Which rows of a data set are left out: by length, by language, and copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from instructrec.envs.tasks.base import Prompt, render_prompt
from instructrec.errors import ConfigError, unknown_name
from instructrec.model_names import EMBEDDED, model_folder
from instructrec.rewards.language import language_probabilities
from instructrec.rewards.loading import load_object


@dataclass(frozen=True)
class Filters:
    """What a row must be like; without settings every row stays."""

    min_prompt_tokens: int | None = None
    """Fewest tokens of the instruction, without the chat template's own."""
    max_prompt_tokens: int | None = None
    """Most tokens of the instruction."""
    max_reference_tokens: int | None = None
    """Most tokens of the expected answer (of the longest, where there are several)."""
    tokenizer: str | None = None
    """What counts tokens: smollm2-135m, a model's or a run's folder, a hub id, or a function as
    module:attr or file.py:attr."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes; instructions in another language go."""
    keep_unknown_language: bool = True
    """Keep instructions that are too short, or have no letter, to tell their language."""
    drop_duplicates: bool = False
    """Keep the first row of equal instructions (letter case and white space ignored)."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | None) -> Filters:
        """Checks and takes over plain values.

        Raises:
            ConfigError: An unknown key, a value of another type, lengths without a tokenizer, or
                an unknown language.
        """
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise ConfigError(f"filters is {values!r}; expected keys such as max_prompt_tokens")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"filters: {unknown_name('key', str(name), known)}")
        given = dict(values)
        if isinstance(languages := given.get("languages", ()), str):
            languages = (languages,)
        filters = cls(**given | {"languages": tuple(languages or ())})
        filters._check()
        return filters

    def _check(self) -> None:
        limits = {name: getattr(self, name) for name in _LIMITS}
        for name, value in limits.items():
            if value is not None and (type(value) is not int or value < 0):
                raise ConfigError(f"filters.{name} = {value!r}; expected a number of tokens")
        if any(value is not None for value in limits.values()) and self.tokenizer is None:
            raise ConfigError(
                "filters limit the number of tokens, but no filters.tokenizer says what counts "
                "them; name the folder or hub id of the model to be trained"
            )
        for name in ("drop_duplicates", "keep_unknown_language"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"filters.{name} = {getattr(self, name)!r}; expected true or false"
                )
        known = known_languages() if self.languages else ()
        for code in self.languages:
            if code not in known:
                raise ConfigError(f"filters.languages: {unknown_name('language', code, known)}")

    def reason(self, prompt: Prompt, reference: str | list[str] | None) -> str | None:
        """Returns why a row is left out, or None. Copies are not seen here."""
        if self.min_prompt_tokens is not None or self.max_prompt_tokens is not None:
            length = self._count(render_prompt(prompt))
            if length < (self.min_prompt_tokens or 0):
                return "min_prompt_tokens"
            if self.max_prompt_tokens is not None and length > self.max_prompt_tokens:
                return "max_prompt_tokens"
        if self.max_reference_tokens is not None and reference is not None:
            answers = [reference] if isinstance(reference, str) else reference
            if max(map(self._count, answers)) > self.max_reference_tokens:
                return "max_reference_tokens"
        if self.languages:
            found = language_of(prompt)
            if found not in self.languages and (found or not self.keep_unknown_language):
                return "languages"
        return None

    def _count(self, text: str) -> int:
        assert self.tokenizer is not None, "checked when the filters were made"
        return token_counter(self.tokenizer)(text)


_LIMITS = ("min_prompt_tokens", "max_prompt_tokens", "max_reference_tokens")


def language_of(prompt: Prompt) -> str | None:
    """The likeliest language of an instruction (of a conversation, of its last message).

    Returns:
        An ISO 639 code; None where no language is likelier than all others together, as of a text
        without a letter and of most with a few words.
    """
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    code, probability = next(iter(language_probabilities(text).items()), ("", 0.0))
    return code if probability > 0.5 else None


def known_languages() -> tuple[str, ...]:
    """The codes that `language_of` can return, sorted."""
    return tuple(sorted(language_probabilities("a")))


@lru_cache(maxsize=8)
def token_counter(spec: str) -> Callable[[str], int]:
    """Returns a function from a text to its number of tokens.

    Args:
        spec: The embedded model's name, a model's folder or hub id, the folder of a run (its
            trained policy), or ``module:attr`` or ``file.py:attr`` for a function.

    Raises:
        ConfigError: There is no such tokenizer or function.
        PolicyError: The embedded model is named and not installed.
    """
    if ":" in spec:
        counter = load_object(spec)
        if not callable(counter):
            raise ConfigError(f"tokenizer {spec!r} is no function from a text to a number")
        return counter
    from transformers import AutoTokenizer

    folder = model_folder(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"tokenizer {spec!r} cannot be loaded: {first} Name {EMBEDDED} (the "
            "embedded model), the folder of a model or a run, or a hub id."
        ) from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False, verbose=False))

    return count
