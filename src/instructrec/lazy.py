"""Public names that are imported on first use, so that ``import instructrec`` stays quick."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """Makes a module ``__getattr__`` and ``__all__`` (PEP 562) for names kept in submodules.

    Args:
        package: ``__name__`` of the package.
        exports: Public name -> full name of the module that defines it.

    Returns:
        The ``__getattr__`` function and the sorted list of public names.
    """

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(exports[name]), name)

    return __getattr__, sorted(exports)
