"""Scripts beside the package, loaded by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def script_of(root: Path) -> Callable[[str], ModuleType]:
    """Loads a script of ``experiments/scripts`` as a module."""

    def load(name: str) -> ModuleType:
        file = root / "experiments" / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load
