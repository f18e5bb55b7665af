"""Chat templates of others are tried out where they can use up nothing.

A template is a program that comes with a tokenizer. Transformers runs it in Jinja's sandbox, which
keeps it from Python but not from a gigabyte or an hour. So it is rendered once in a process of its
own, with little memory and time, before it is rendered here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

from instructrec.errors import PolicyError

MAX_CHARACTERS = 200_000
"""Longest template; those of known models have less than 20,000."""
_MEMORY_BYTES = 512 * 2**20
_CPU_SECONDS = 4
_WALL_SECONDS = 60.0
_TOO_MUCH = 9
_CHILD = f"""
import json, resource, sys
given = json.load(sys.stdin)
from jinja2.sandbox import ImmutableSandboxedEnvironment
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY_BYTES}, {_MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CPU, ({_CPU_SECONDS}, {_CPU_SECONDS}))
def refuse(message):
    raise ValueError(message)
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
environment.globals |= {{"raise_exception": refuse, "strftime_now": lambda form: form}}
try:
    size = len(environment.from_string(given.pop("template")).render(**given))
except (MemoryError, OverflowError, RecursionError):
    sys.exit({_TOO_MUCH})
except Exception:
    sys.exit(0)  # a mistake in it, or it refuses this chat: not a matter of what it costs
sys.exit({_TOO_MUCH} if size > {MAX_CHARACTERS} else 0)
"""


def templates_of(tokenizer: Any) -> dict[str, str]:
    """A tokenizer's chat templates by name: some have one for tools, say, beside ``default``."""
    given = tokenizer.chat_template
    if given is None:
        return {}
    if isinstance(given, dict):
        return {str(name): str(template) for name, template in given.items()}
    return {"default": str(given)}


def try_template(tokenizer: Any, name: str) -> None:
    """Renders a tokenizer's templates in a process with little memory and time.

    Args:
        tokenizer: Where it has no chat template nothing is done.
        name: The model's name, for the error.

    Raises:
        PolicyError: A template is longer than templates are, or a short chat of it takes more
            memory or time than any needs; or there are several and none is the default one.
    """
    templates = templates_of(tokenizer)
    if templates and "default" not in templates:
        raise PolicyError(
            f"{name!r} has the chat templates {', '.join(map(repr, templates))}: expected one of "
            "the name 'default'. Give one of them that name in its tokenizer's folder."
        )
    chat = [{"role": "user", "content": "question"}]
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    for called, template in templates.items():
        given = {"template": template, "messages": chat, "add_generation_prompt": True, **tokens}
        if len(template) > MAX_CHARACTERS or not _ends_well(json.dumps(given)):
            raise PolicyError(
                f"the chat template {called!r} of {name!r} was not used: it has {len(template)} "
                "characters, and a chat of one word takes more memory, time or room than a "
                "template needs. Use the tokenizer of somebody you trust, or replace chat_template "
                "in its folder."
            )


@cache
def _ends_well(given: str) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=given,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
