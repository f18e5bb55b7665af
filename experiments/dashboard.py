"""``instructrec dashboard``: a saved view of a W&B project, made for comparing policies.

The view is described by the package ``wandb-workspaces``. Describing it needs no network; saving it
needs a key, because views live on the server.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from instructrec.errors import ConfigError, TrackingError
from instructrec.experiments.jsonl import output_file, write_atomic
from instructrec.experiments.offline_sync import stored_key
from instructrec.experiments.tracking import TrackingConfig, reason

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_UPDATE = "train/update"


@dataclass(frozen=True)
class DashboardConfig:
    """Which view is made (``instructrec dashboard``)."""

    project: str = TrackingConfig.project
    """W&B project that the view shows: one comparison."""
    entity: str | None = None
    """W&B user or team; None takes the account's default."""
    title: str = "Policies compared"
    """Name of the view."""
    out: str | None = None
    """Write the view to this JSON file instead of saving it; needs no key and no network."""


def build(parser: ArgumentParser) -> None:
    """Arguments of ``dashboard``."""
    parser.add_class_arguments(DashboardConfig)


def run(values: Namespace, command: list[str]) -> None:
    """Makes the view."""
    from instructrec.experiments import command_line

    make(command_line.as_dataclass(DashboardConfig, values))


def make(
    config: DashboardConfig,
    *,
    has_key: Callable[[], bool] = stored_key,
    say: Callable[[str], None] = print,
) -> None:
    """Saves the view, or writes it to a file.

    Args:
        config: Which view.
        has_key: Says whether there is a key of W&B.
        say: Receives a line for people.

    Raises:
        ConfigError: The package that describes views is not installed.
        TrackingError: There is no key, or the view could not be saved.
    """
    if config.out is not None:
        out = output_file(config.out)
        workspace = view(config.project, config.entity or "", config.title)
        text = json.dumps(workspace._spec, indent=2, ensure_ascii=False)
        write_atomic(out, text + "\n")
        say(f"written  {config.out}")
        return
    _packages()
    if not has_key():
        raise TrackingError(
            "a view is saved on W&B's server, and no key was found: expected one in WANDB_API_KEY, "
            "or stored by `wandb login`. --out FILE writes the view to a file instead."
        )
    try:
        saved = view(config.project, config.entity or default_entity(), config.title).save()
    except Exception as error:
        raise TrackingError(
            f"the view could not be saved ({reason(error)}): expected a server that can be reached "
            f"and a project {config.project!r} that may be changed. --out FILE writes the view to "
            "a file instead."
        ) from error
    say(f"view     {saved.url}")


def view(project: str, entity: str, title: str) -> Any:
    """Describes the view.

    Seeds are grouped by variant; curves are their mean, the band spans the least and the largest.

    Args:
        project: W&B project.
        entity: User or team.
        title: Name of the view.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        ConfigError: The package is not installed.
    """
    ws, wr = _packages()
    expr = importlib.import_module("wandb_workspaces.expr")
    sections = [
        ws.Section(name=name, panels=panels, is_open=True) for name, panels in _sections(wr).items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=_UPDATE, max_runs=30),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Group")],
            pinned_columns=["summary:status", "summary:final/eval/total/mean", "config:seed.value"],
        ),
    )


def _sections(wr: Any) -> dict[str, list[Any]]:
    """Name of a section -> its panels."""

    def curve(title: str, *keys: str, x: str = _UPDATE) -> Any:
        return wr.LinePlot(
            title=title, x=x, y=list(keys), groupby_aggfunc="mean", groupby_rangefunc="minmax"
        )

    def curves(title: str, pattern: str) -> Any:
        return wr.LinePlot(
            title=title,
            x=_UPDATE,
            metric_regex=pattern,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    return {
        "Learning": [
            curve("held-out total", "eval/total/mean"),
            curve("total of the rollouts", "reward/total/mean"),
            wr.BarPlot(title="final held-out total", metrics=["final/eval/total/mean"]),
        ],
        "Rewards": [
            curves("reward parts of the rollouts", r"reward/.*/mean"),
            curves("held-out reward parts", r"eval/[^/]*/mean"),
            curves("tasks of a mixture", r"(rollout/task/.*/total|eval/task/.*/mean)"),
        ],
        "Reward against KL": [
            curve("total by KL to the reference", "reward/total/mean", x="ppo/kl_ref"),
            curve("KL to the reference", "ppo/kl_ref"),
            curve("response length", "rollout/response_len"),
        ],
        "Learner": [
            curve("entropy", "ppo/entropy"),
            curve("clipped tokens", "ppo/clip_frac"),
            curve("explained variance", "ppo/explained_variance"),
            curve("validation loss of SFT", "sft/val_loss", x="sft/step"),
        ],
        "Responses": [wr.WeavePanelSummaryTable(table_name="samples")],
        "Runs": [wr.RunComparer(diff_only="split")],
    }


def _packages() -> tuple[Any, Any]:
    """The modules that describe workspaces and panels."""
    try:
        return (
            importlib.import_module("wandb_workspaces.workspaces"),
            importlib.import_module("wandb_workspaces.reports.v2"),
        )
    except ImportError as error:
        raise ConfigError(
            "`instructrec dashboard` needs the package wandb-workspaces: "
            "pip install 'instructrec[dashboard]'."
        ) from error


def default_entity() -> str:
    """Asks W&B whose projects are meant where nobody says so."""
    import wandb

    return str(wandb.Api().default_entity)
