"""Keys and passwords stay out of what a run writes down.

A key belongs into an environment variable, and settings name the variable. Settings that hold a key
themselves are refused before anything is written; command lines, errors and records lose what looks
like one, and the value of every variable whose name says that it is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructrec.errors import ConfigError

HIDDEN = "***"
"""Stands where a key stood."""
_SHORTEST = 8
"""Characters of the shortest value of a variable that is hidden; shorter ones stand in any text."""
_WORD = r"(^|[^a-z0-9])"
_NAMED = re.compile(
    rf"{_WORD}(api[_-]?key|(access|private|secret)[_-]?key|secret|password|passwd|passphrase"
    r"|credentials?)$"
    rf"|{_WORD}(auth|access|api|bearer|github|hf|hub|refresh|session|wandb)[_-]?token$"
    r"|(^-*|\.)token$",
    re.IGNORECASE,
)
_NAMED_VARIABLE = re.compile(
    r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE
)
_USERINFO = re.compile(r"(?<=://)[^/\s?#@'\"]+(?=@)")
_IN_QUERY = re.compile(
    r"(?<=[?&])((?:[\w-]*(?:token|key|secret|password|signature|sig))=)[^&\s'\"#]+", re.IGNORECASE
)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[opusr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|xox[abp]-[\w-]{10,}|AKIA[0-9A-Z]{16}|wandb_v1_\w{20,})"
)


def is_named_secret(name: str) -> bool:
    """Whether a setting or option of this name holds a key: ``api_key``, ``judge.hub-token``.

    Names of variables (``api_key_env``) and counts (``max_tokens``, ``eos_token``) are none.
    """
    return _NAMED.search(name) is not None


def known_secrets() -> list[str]:
    """Values of environment variables whose names say that they are keys, the longest first."""
    values = {
        value.strip()
        for name, value in os.environ.items()
        if _NAMED_VARIABLE.search(name) and len(value.strip()) >= _SHORTEST
    }
    return sorted(values, key=len, reverse=True)  # one may be part of another


def without(secrets: Sequence[str], text: str) -> str:
    """Text in which each of the secrets is hidden."""
    for value in secrets:
        if value in text:
            text = text.replace(value, HIDDEN)
    return text


def redacted(text: str) -> str:
    """Text without anything that is, or looks like, a key or password.

    Besides the values of variables: user names and passwords in addresses, keys in their queries,
    and the shapes of keys of well-known services.
    """
    text = _USERINFO.sub(HIDDEN, without(known_secrets(), text))
    return _SHAPES.sub(HIDDEN, _IN_QUERY.sub(rf"\1{HIDDEN}", text))


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """A command line without the values of options that are named like keys, and `redacted`."""
    shown: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, _ = argument.partition("=")
        if equals and _names_option(name):
            shown.append(f"{name}={HIDDEN}")
        elif previous.startswith("-") and "=" not in previous and _names_option(previous):
            shown.append(HIDDEN)
        else:
            shown.append(redacted(argument))
    return shown


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Refuses settings that hold a key, because they are written down and sent to trackers.

    Args:
        settings: Nested plain values.

    Raises:
        ConfigError: A value is named like a key, or is or contains one. The message holds no value.
    """
    for key, text in _texts(settings, ""):
        if is_named_secret(key):
            why = "is named like a key or password"
        elif redacted(text) != text:
            why = "holds a key, or an address with a user name or password"
        else:
            continue
        raise ConfigError(
            f"{key} {why}: settings are written to config.yaml and sent to trackers. Put it into "
            "an environment variable, read it there in your own code, and where an option such as "
            "api_key_env exists, name the variable in it."
        )


def _names_option(name: str) -> bool:
    """On a command line, where nobody is hindered by it, any option that ends in token is one."""
    return is_named_secret(name) or re.search(r"(^|[._-])token$", name, re.IGNORECASE) is not None


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Texts among nested values, with their dotted keys; what is empty is no secret."""
    if isinstance(value, str) and value:
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
