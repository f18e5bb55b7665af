"""A sweep as W&B writes them down; its agent runs ``instructrec train``.

``wandb sweep FILE`` and ``wandb agent`` need a server and an account. Format:
https://docs.wandb.ai/guides/sweeps/sweep-config-keys.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from instructrec.experiments.api import as_options
from instructrec.experiments.jsonl import output_file, write_atomic
from instructrec.experiments.sweep_spec import Dimension, SweepSpec

_METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}
_DISTRIBUTIONS = {
    "log_uniform": "log_uniform_values",
    "uniform": "uniform",
    "integer": "int_uniform",
}


def wandb_sweep(spec: SweepSpec) -> dict[str, Any]:
    """The same search for W&B, as plain values.

    Every seed is a run of its own there, and nothing is pruned. Keys stay dotted: nested ones would
    reach the command as Python mappings. Each run gets a folder of its own by W&B's id, which the
    agent sets in the environment of the command; therefore the shell.
    """
    parameters = {dimension.key: _parameter(dimension) for dimension in spec.space}
    parameters["seed"] = {"values": list(spec.seeds)}
    words = ["instructrec", "train", *spec.recipe, *as_options(spec.settings)]
    # What comes last replaces what the recipe or the settings say.
    name = shlex.quote(spec.name)
    script = f'exec {shlex.join(words)} "$@" --tracking.mode online --variant {name}'
    script += f' --name {name}-"$WANDB_RUN_ID"'
    return {
        "name": spec.name,
        "method": _METHODS[spec.sampler],
        "metric": {"name": spec.metric, "goal": spec.direction},
        "run_cap": spec.trials * len(spec.seeds),
        "program": "instructrec",
        "command": ["sh", "-c", script, "sweep", "${args}"],
        "parameters": parameters,
    }


def write_wandb_sweep(spec: SweepSpec, file: Path) -> None:
    """Writes the sweep file."""
    write_atomic(output_file(file), yaml.safe_dump(wandb_sweep(spec), sort_keys=False))


def _parameter(dimension: Dimension) -> dict[str, Any]:
    if dimension.kind == "choice":
        # The agent writes None as Python does; the command line calls it null.
        values = ["null" if value is None else value for value in dimension.values]
        return {"values": values}
    low, high = dimension.values
    return {"distribution": _DISTRIBUTIONS[dimension.kind], "min": low, "max": high}
