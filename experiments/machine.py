"""What a run ran on and with: machine, versions, code state, command line. Imports no torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import instructrec
from instructrec.redaction import redacted_command

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "trl", "accelerate", "peft"),
    *("datasets", "gymnasium", "numpy", "scipy", "sacrebleu", "wandb"),
)
_TIMEOUT_S = 5.0


def machine_info() -> dict[str, Any]:
    """Returns operating system, CPU model, usable cores, memory in bytes and the names of GPUs."""
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python, instructrec and the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "instructrec": instructrec.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Returns the commit of the checkout that instructrec runs from, ``+changes`` if it differs.

    None for an installed package: a repository that merely surrounds it says nothing about it.
    """
    source = Path(instructrec.__file__).resolve()
    if _output("git", "-C", str(source.parent), "ls-files", "--error-unmatch", str(source)) is None:
        return None
    commit = _output("git", "-C", str(source.parent), "rev-parse", "HEAD")
    status = _output("git", "-C", str(source.parent), "status", "--porcelain", "-uno")
    return f"{commit}+changes" if commit and status else commit


def command_line(argv: Sequence[str] | None = None) -> list[str]:
    """Returns the command line with the values of keys, tokens and passwords blanked out."""
    return redacted_command(sys.argv if argv is None else argv)


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if shutil.which("nvidia-smi"):
        names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        return names.splitlines() if names else []
    return []
