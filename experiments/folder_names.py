"""What the folders of runs may be called, and what they are called where nobody says."""

from __future__ import annotations

import re
from pathlib import Path

from instructrec.errors import ConfigError

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}")


def check_name(key: str, value: str | None) -> None:
    """Refuses a name that cannot be one of a folder; None is none yet.

    Raises:
        ConfigError: It has other characters than such names, or too many.
    """
    if value is not None and not FOLDER_NAME.fullmatch(value):
        raise ConfigError(
            f"{key} = {value!r}: expected letters, digits, '.', '_' and '-' only, at most 150, "
            "because it names a folder; the folder's place is output.dir."
        )


def name_of_task(task: str) -> str:
    """A task in the words of a folder's name: ``data/my_rows.jsonl`` becomes ``my-rows``.

    Args:
        task: A registered name, a path, ``hf:ID``, ``module:attr`` or ``file.py:attr``.
    """
    name = Path(task.removeprefix("hf:").split(":")[0]).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).replace("_", "-").strip("-")
