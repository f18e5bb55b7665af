"""``instructrec sweep``: its arguments."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec import processes
from instructrec.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def build(parser: ArgumentParser) -> None:
    """Arguments of ``sweep``."""
    parser.add_argument(
        "spec",
        help="YAML file: recipe, space (dotted key: {log_uniform|uniform|integer: [low, high]} or "
        "{choice: [...]}), and if wanted settings, trials, seeds, metric, direction, sampler, "
        "sampler_seed, pruner, pruner_startup, name.",
    )
    parser.add_argument(
        "--trials", type=int, help="Settings that are tried, instead of the file's."
    )
    parser.add_argument("--dir", default="runs/sweeps", help="Folder of the sweeps.")
    parser.add_argument(
        "--resume", action="store_true", help="Continue the sweep, also one that was killed."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Delete an existing sweep of this name."
    )
    parser.add_argument(
        "--write_wandb",
        metavar="FILE",
        help="Run nothing: write the same search as a W&B sweep file, whose agent trains with "
        "this command.",
    )


def run(values: Namespace, command: list[str]) -> None:
    """Runs a sweep, or writes it for W&B."""
    from instructrec.experiments.sweep_spec import check_runs, read_spec

    processes.refuse_several("instructrec sweep")
    spec = read_spec(Path(values.spec))
    if values.trials is not None:
        if values.trials < 1:
            raise ConfigError(f"--trials {values.trials}: expected at least 1.")
        spec = dataclasses.replace(spec, trials=values.trials)
    if values.write_wandb is not None:
        from instructrec.experiments.sweep_wandb import write_wandb_sweep

        if values.resume or values.overwrite:
            raise ConfigError("--write_wandb runs nothing: leave --resume and --overwrite out.")
        check_runs(spec)
        write_wandb_sweep(spec, Path(values.write_wandb))
        print(f"written {values.write_wandb}; start it with: wandb sweep {values.write_wandb}")
        return
    from instructrec.experiments.sweep import run_sweep

    folder = Path(values.dir) / spec.name
    run_sweep(spec, folder, resume=values.resume, overwrite=values.overwrite)
