"""Public names that are imported on first use, so that ``import instructrec`` stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], list[str]]:
    """Makes a module ``__getattr__`` and ``__all__`` (PEP 562) for names kept in submodules.

    The package also gets a ``__dir__``, so that completion shows names that are not loaded yet.

    Args:
        package: ``__name__`` of the package.
        exports: Public name -> full name of the module that defines it.

    Returns:
        The ``__getattr__`` function and the sorted list of public names.
    """
    namespace = vars(sys.modules[package])

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(exports[name]), name)

    namespace["__dir__"] = lambda: sorted({*namespace, *exports})
    return __getattr__, sorted(exports)
