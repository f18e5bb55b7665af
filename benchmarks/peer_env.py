"""The environment of TRL 1.12, which cannot be installed beside the release that we use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from instructrec.policies.embedded import cache_folder

VARIABLE = "INSTRUCTREC_TRL112_PYTHON"
"""Environment variable that names an interpreter which has it already."""
_PINS = (
    *("trl==1.12.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0"),
    "numpy==2.4.6",
)
_CHECK = "import trl; from trl.experimental.ppo import PPOTrainer; print(trl.__version__)"


def trl112_python(given: Path | None = None) -> Path:
    """Returns the interpreter of an environment with TRL 1.12.0; makes one on first use.

    Args:
        given: An interpreter to use instead.

    Raises:
        RuntimeError: It lacks that release, or it cannot be installed.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        return _checked(named)
    folder = cache_folder() / "benchmarks" / "trl-1.12.0"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        print(f"installing TRL 1.12.0 and PyTorch once into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        torch = metadata.version("torch").partition("+")[0]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            for packages in ((f"torch=={torch}",), _PINS):
                subprocess.run(
                    [str(python), "-m", "pip", "install", "--quiet", *packages], check=True
                )
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"cannot install TRL 1.12.0 into {folder}: {error}. Set {VARIABLE} to an "
                "interpreter that has it, or leave its parts out with --parts."
            ) from error
        (folder / "complete").touch()
    return _checked(python)


def _checked(python: Path) -> Path:
    try:
        done = subprocess.run([str(python), "-c", _CHECK], capture_output=True, text=True)
        found = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
    except (OSError, IndexError) as error:
        found = str(error)
    if found.splitlines()[-1:] != ["1.12.0"]:
        raise RuntimeError(f"{python}: expected an interpreter with trl 1.12.0, found {found!r}.")
    return python
