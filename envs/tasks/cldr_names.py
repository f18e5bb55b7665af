"""Names of countries and languages in another language: "Translate into German: Austria".

The names are those of the Unicode Common Locale Data Repository (https://cldr.unicode.org), which
the package babel carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import split_words
from instructrec.envs.tasks.procedural import VERSION, Problem, ProceduralTask, fingerprint_of
from instructrec.errors import ConfigError

LANGUAGES = {
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pt": "Portuguese",
}
"""Locale -> its name; the languages that are translated into."""

PHRASINGS = (
    "Translate into {language}: {name}",
    "Translate to {language}: {name}",
    "Say it in {language}: {name}",
    "Give the {language} name: {name}",
    "Write the {language} name: {name}",
    "Put this name into {language}: {name}",
    "What is this called in {language}: {name}?",
    "How do you say this in {language}: {name}?",
)


@register_task("cldr_names")
class CldrNames(ProceduralTask):
    """Translates the name of a country, a territory or a language from English.

    Needs ``pip install 'instructrec[translation]'``. The reference is the name in the language
    asked for, which is the column ``family``; ``item`` is the English name, and no English name of
    one split is in another, whatever the language.

    Raises:
        ConfigError: babel is not installed.
    """

    name = "cldr_names"

    def keys(self) -> Sequence[str]:
        """Returns the split's English names: each is asked for in turn."""
        return split_words(tuple(_names()))[self.split]

    def num_variants(self, key: str) -> int:
        """Returns languages x phrasings."""
        return len(LANGUAGES) * len(PHRASINGS)

    def problem(self, key: str, variant: int) -> Problem:
        """Returns a variant: language and phrasing."""
        phrasing, language = divmod(variant, len(LANGUAGES))
        locale, name = list(LANGUAGES.items())[language]
        prompt = PHRASINGS[phrasing].format(language=name, name=key)
        return Problem(prompt, _names()[key][locale], item=key, family=name)

    @property
    def fingerprint(self) -> str:
        """As of every procedural task, with all names: another CLDR may have others."""
        facts = {"name": self.name, "version": VERSION, "split": self.split, "seed": self.seed}
        return fingerprint_of(**facts, size=self.size, names=_names())


@cache
def _names() -> dict[str, dict[str, str]]:
    """English name -> locale -> name there, of what has a code of two letters."""
    try:
        from babel import Locale
    except ImportError as error:
        raise ConfigError(
            "the task 'cldr_names' needs babel, which carries the names. Run: "
            "pip install 'instructrec[translation]'"
        ) from error
    english = Locale.parse("en")
    locales = {code: Locale.parse(code) for code in LANGUAGES}
    names: dict[str, dict[str, str]] = {}
    for kind in ("territories", "languages"):
        for code, name in sorted(getattr(english, kind).items()):
            found = {locale: getattr(it, kind).get(code) for locale, it in locales.items()}
            if len(code) == 2 and code.isalpha() and all(found.values()):
                names.setdefault(name, found)
    return names
