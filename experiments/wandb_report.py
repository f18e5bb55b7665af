"""A comparison as a report of W&B: its verdicts and tables, with the learning curves below."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from instructrec.experiments.dashboard import default_entity
from instructrec.experiments.tracking import TrackingConfig, reason

_CURVES = {
    "held-out total": "eval/total/mean",
    "total of the rollouts": "reward/total/mean",
    "KL to the reference": "ppo/kl_ref",
    "response length": "rollout/response_len",
}
_GRID_WIDTH = 24
"""Columns of a grid of panels."""


def describe(title: str, markdown: str, config: TrackingConfig, entity: str) -> Any:
    """Describes the report; needs no network.

    Args:
        title: Its name.
        markdown: What ``compare.md`` holds.
        config: The project whose runs are drawn.
        entity: User or team.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``.

    Raises:
        ImportError: The package wandb-workspaces is not installed.
    """
    wr = importlib.import_module("wandb_workspaces.reports.v2")
    width = _GRID_WIDTH // 2
    panels = [
        wr.LinePlot(
            title=name,
            x="train/update",
            y=[key],
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=wr.Layout(x=width * (i % 2), y=8 * (i // 2), w=width, h=8),
        )
        for i, (name, key) in enumerate(_CURVES.items())
    ]
    runs = wr.Runset(project=config.project, entity=entity, name="runs", groupby=["Group"])
    grid = wr.PanelGrid(runsets=[runs], panels=panels)
    return wr.Report(
        project=config.project,
        entity=entity,
        title=title,
        description="Policies compared by instructrec",
        blocks=[wr.MarkdownBlock(markdown), wr.H2("Learning curves"), grid],
    )


def save(
    title: str,
    markdown: str,
    config: TrackingConfig,
    *,
    say: Callable[[str], None],
    entity: Callable[[], str] | None = None,
) -> None:
    """Saves the report on the server; what goes wrong is only said.

    Args:
        title: Its name.
        markdown: What ``compare.md`` holds.
        config: Where to.
        say: Receives one line for people.
        entity: Says whose project it is where the configuration does not; None asks W&B.
    """
    try:
        owner = config.entity or (entity or default_entity)()
        report = describe(title, markdown, config, owner)
        report.save()
    except ImportError:
        say("no report in W&B: it needs wandb-workspaces (pip install 'instructrec[dashboard]').")
    except Exception as error:  # whatever the server says: the comparison lies in its folder
        say(f"no report in W&B ({reason(error)}): the comparison is whole without it.")
    else:
        say(f"W&B report  {report.url}")
