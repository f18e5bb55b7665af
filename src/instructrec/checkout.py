"""Refuses a checkout whose links came out as text files.

The five packages are folders at the top of the repository; ``src/instructrec`` holds a relative
link to each. Where Git or an unzip tool cannot make links, it writes small text files instead, and
every import below ``instructrec`` would fail with a message that names neither cause nor cure.
``make setup`` runs this file as a script before anything is installed, so it uses the standard
library alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = ("rewards", "envs", "policies", "rl", "experiments")


def missing_links(root: Path) -> list[str]:
    """Returns the packages that are not folders (or links to folders) in ``root``."""
    return [name for name in PACKAGES if not (root / name).is_dir()]


def require_links(root: Path | None = None) -> None:
    """Raises ImportError, saying what to do, unless all five packages can be reached.

    Args:
        root: The folder to look in; None takes the one of this file.
    """
    root = Path(__file__).resolve().parent if root is None else root
    missing = missing_links(root)
    if not missing:
        return
    what = "is a text file" if (root / missing[0]).is_file() else "does not exist"
    raise ImportError(
        f"{root / missing[0]} {what}; expected a symbolic link to ../../{missing[0]} "
        f"(missing: {', '.join(missing)}). This copy was made without link support. "
        "In a Git clone run: git config core.symlinks true && git checkout -- src/instructrec. "
        "From a zip archive, clone the repository instead. On Windows work inside WSL, or turn on "
        "developer mode and clone with: git clone -c core.symlinks=true URL"
    )


if __name__ == "__main__":
    try:
        require_links()
    except ImportError as error:
        sys.exit(str(error))
