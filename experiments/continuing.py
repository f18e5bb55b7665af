"""Going on with a run: what must be as it was, and what the run folder says about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError, ConfigError, RunInterrupted
from instructrec.experiments import data_lock, telling
from instructrec.experiments.config import TrainConfig, keep_chosen, refuse_changed
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.setup_run import LoadPolicy, Materials, policy_name
from instructrec.rl.checkpoint import update_of
from instructrec.rl.checkpoint_keeping import delete_checkpoints, list_checkpoints

if TYPE_CHECKING:
    from instructrec.policies.model_policy import ModelPolicy


_UPDATES = ("ppo.num_updates", "updates")
"""What counts the work of training by rewards, and its unit."""


def check_flags(resume: bool, overwrite: bool, allow_change: Sequence[str]) -> None:
    """Refuses flags that exclude or need each other.

    Raises:
        ConfigError: They do.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: choose one.")
    if allow_change and not resume:
        raise ConfigError(
            f"--allow_change {' '.join(allow_change)} says what may differ when a run goes on: "
            "expected --resume beside it."
        )


def continued(
    config: TrainConfig, resume: bool, allow_change: Sequence[str], say: telling.Say
) -> tuple[TrainConfig, bool]:
    """Holds the settings of a run against its folder; no folder, nothing to continue.

    Args:
        config: The run, resolved.
        resume: Whether it was asked to go on.
        allow_change: Keys that may differ.
        say: Receives lines for people.

    Returns:
        The run with what it chose for itself at its start, and whether it goes on.

    Raises:
        ConfigError: A setting has changed that must not, or there are fewer updates than done.
        CheckpointError: The run has finished, and what it could go on from was deleted.
    """
    if resume and not config.folder.exists():
        say(f"nothing to resume in {config.folder}: starting from the beginning")
        return config, False
    if resume:
        config = keep_chosen(config, config.folder)
        refuse_changed(config, config.folder, allow_change)
        saved = list_checkpoints(config.folder / "checkpoints")
        done = update_of(saved[-1] if saved else None)
        if config.steps < done:
            given = config.supervised is not None
            key, unit = (f"{config.section}.max_steps", "steps") if given else _UPDATES
            raise ConfigError(
                f"{key} = {config.steps}: the run has done {done} {unit} already. Give at least as "
                "many, or start another run."
            )
        if not saved:
            _refuse_lost(config)
        if allow_change:
            say(f"allowed to differ from here on: {', '.join(allow_change)}")
    return config, resume


def _refuse_lost(config: TrainConfig) -> None:
    """Refuses to train a finished run again because its checkpoints were deleted to save space."""
    folder = RunFolder.open(config.folder)
    if config.supervised is not None or folder.record().get("status") != "finished":
        return
    before = (folder.config().get("ppo") or {}).get("num_updates")
    if before == config.ppo.num_updates and folder.policy.is_dir():
        return
    other = f"Start a new run from its policy (--policy.model {folder.path}), or train"
    raise CheckpointError(
        f"{folder.path} has finished its {before} updates and holds no checkpoints any more: "
        f"expected some to go on from to ppo.num_updates = {config.ppo.num_updates}. "
        f"{other if folder.policy.is_dir() else 'Train'} it anew with --overwrite."
    )


def finished(
    config: TrainConfig, load_policy: LoadPolicy, say: telling.Say
) -> tuple[RunFolder, dict[str, Any], ModelPolicy] | None:
    """What a run left that came to its end, and has nothing to go on from to further updates.

    Args:
        config: The run, resolved.
        load_policy: Makes the policy.
        say: Receives lines for people.

    Returns:
        Its folder, its summary and its policy; None where it has not finished, or has left no
        policy, and where training by rewards left checkpoints, from which it may be extended.
    """
    folder = RunFolder.open(config.folder)
    if config.supervised is None and list_checkpoints(folder.checkpoints):
        return None
    if folder.record().get("status") != "finished" or not folder.policy.is_dir():
        return None
    say(f"{folder.path} has finished already")
    drop_checkpoints(folder)
    settings = dataclasses.replace(config.policy, model=str(folder.policy))
    policy = load_policy(settings, config.seed, config.eval_sampling)
    policy.name = policy_name(folder.info())
    return folder, folder.summary(), policy


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Trains and measures: whoever stops that at once is told how it goes on, where it can.

    Args:
        folder: The run folder.

    Raises:
        KeyboardInterrupt: It was stopped inside of the block, and there is no checkpoint.
        RunInterrupted: It was stopped inside of the block, and there is a checkpoint.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not list_checkpoints(folder.checkpoints):
            raise
        raise RunInterrupted(
            "stopped before all that was trained was measured and written. The same "
            f"command with --resume goes on from the newest checkpoint in {folder.checkpoints}."
        ) from error


def drop_checkpoints(folder: RunFolder) -> None:
    """Deletes the checkpoints of a run that has nothing left to go on to."""
    with suppress(OSError):  # which is no reason to fail now
        delete_checkpoints(folder.checkpoints)


def begin(
    folder: RunFolder,
    info: RunInfo,
    config: TrainConfig,
    materials: Materials,
    *,
    resume: bool,
    overwrite: bool,
    allow_change: Sequence[str],
    command: Sequence[str] | None,
) -> None:
    """Makes a run folder, or opens it to go on.

    Args:
        folder: The folder.
        info: What the run is.
        config: The run.
        materials: Its instructions.
        resume: Go on with what is there.
        overwrite: Delete what is there.
        allow_change: What may differ where it goes on.
        command: The command line after the program's name, for the record.

    Raises:
        CheckpointError: The folder holds something else, or another run.
    """
    flags = {"resume": resume, "overwrite": overwrite}
    record = None if command is None else ["instructrec", *command]
    RunFolder.create(folder.path, info, config.to_dict(), command=record, **flags)
    note(folder, materials.splits, allow_change)


def note(folder: RunFolder, splits: data_lock.Splits, allow_change: Sequence[str]) -> None:
    """Writes down which data a run has, and what was allowed to change in its course."""
    data_lock.note_data(folder, splits)
    if allow_change:
        record = folder.record()
        record["allowed_changes"] = [*record.get("allowed_changes", []), *allow_change]
        write_json(folder.path / "run.json", record)
    crash_point("run.created")
