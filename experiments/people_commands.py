"""The commands around a run: ``report``, ``export``, ``doctor`` and ``chat``.

``build_<command>`` adds the arguments and ``run_<command>`` runs it; torch is imported only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from instructrec.experiments import command_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def build_report(parser: ArgumentParser) -> None:
    """Arguments of ``report``."""
    from instructrec.experiments.report import ReportConfig

    parser.add_argument("run", help="A run folder; an unfinished or failed run will do.")
    parser.add_class_arguments(ReportConfig)


def run_report(values: Namespace, command: list[str]) -> None:
    """Reports on a run."""
    from instructrec.experiments.report import ReportConfig, report

    report(values.run, command_line.as_dataclass(ReportConfig, values))
