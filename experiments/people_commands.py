"""The commands around a run: ``report``, ``explain``, ``export``, ``doctor`` and ``chat``.

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


def build_export(parser: ArgumentParser) -> None:
    """Arguments of ``export``."""
    from instructrec.experiments.export_policy import ExportConfig

    parser.add_argument(
        "policy", help="A run folder, a Hugging Face folder or hub id, or a model name."
    )
    parser.add_class_arguments(ExportConfig)
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace a model that lies in the folder."
    )


def run_export(values: Namespace, command: list[str]) -> None:
    """Exports a policy."""
    from instructrec.experiments.export_policy import ExportConfig, export_policy

    config = command_line.as_dataclass(ExportConfig, values)
    export_policy(values.policy, config, overwrite=values.overwrite)


def build_explain(parser: ArgumentParser) -> None:
    """Arguments of ``explain``."""
    from instructrec.experiments.explain import ExplainConfig

    parser.add_argument(
        "policy", help="A run folder, a Hugging Face folder or hub id, or a model name."
    )
    parser.add_class_arguments(ExplainConfig)


def run_explain(values: Namespace, command: list[str]) -> None:
    """Explains one episode."""
    from instructrec.experiments.explain import ExplainConfig, explain

    explain(values.policy, command_line.as_dataclass(ExplainConfig, values))


def build_doctor(parser: ArgumentParser) -> None:
    """Arguments of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run_doctor(values: Namespace, command: list[str]) -> None:
    """Looks at what is here."""
    from instructrec.experiments import doctor

    doctor.run_doctor(values.json)


def build_chat(parser: ArgumentParser) -> None:
    """Arguments of ``chat``."""
    from instructrec.experiments.chat_terminal import ChatConfig

    parser.add_argument(
        "policies",
        nargs="+",
        help="One or two: a run folder, a Hugging Face folder or hub id, a model name, or the "
        "address of a server.",
    )
    parser.add_class_arguments(ChatConfig)


def run_chat(values: Namespace, command: list[str]) -> None:
    """Talks to policies."""
    from instructrec.experiments.chat_terminal import ChatConfig, run_chat

    run_chat(values.policies, command_line.as_dataclass(ChatConfig, values))
