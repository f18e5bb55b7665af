"""``metrics.jsonl``: the numbers of a run, one line for each update."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.experiments.jsonl import JsonlWriter, Row, keep_rows, read_rows
from instructrec.metrics import axis_value


class MetricsLog:
    """Writes ``metrics.jsonl``: one line per update, on the disk before ``write`` returns.

    Args:
        path: The file; existing lines are kept.
        resumed_update: Update that the run continues from: lines of later updates are dropped,
            because these updates are done again.
    """

    def __init__(self, path: Path, resumed_update: int | None = None) -> None:
        if resumed_update is not None:
            keep_rows(path, lambda row: _position(row) <= resumed_update)
        self._writer = JsonlWriter(path)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line; a number that is not finite becomes null, with a warning."""
        broken = [key for key, value in metrics.items() if _not_finite(value)]
        if broken:
            warnings.warn(
                f"update {metrics.get('train/update', '?')}: {', '.join(broken)} is not a finite "
                f"number; written as null to {self._writer.path}.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._writer.write(metrics)

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[Row]:
    """Reads the metrics of a run in the order of its updates.

    Args:
        path: A run folder, or a ``metrics.jsonl``.

    Raises:
        DataError: The file is missing, or a line other than a torn last one is not JSON.
    """
    path = Path(path)
    return sorted(read_rows(path / "metrics.jsonl" if path.is_dir() else path), key=_position)


def _position(row: Mapping[str, Any]) -> float:
    return axis_value(row) or 0.0


def _not_finite(value: Any) -> bool:
    try:
        return value is not None and not np.isfinite(float(value))
    except (TypeError, ValueError):
        return False
