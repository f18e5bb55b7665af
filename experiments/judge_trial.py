"""Before a training that learns from a judge: can it be talked into good grades?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from instructrec.errors import DataError
from instructrec.rewards.deceptions import CALLS, deceivable, try_to_deceive

if TYPE_CHECKING:
    from instructrec.experiments.config import TrainConfig
    from instructrec.experiments.setup_run import Materials


def try_judges(
    config: TrainConfig,
    materials: Materials,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Asks the judges of a run about worthless responses to instructions that it trains on.

    Args:
        config: The run; one that learns from demonstrations is told nothing by its rewards.
        materials: Its tasks and rewards.
        say: Receives what came out.
        warn: Receives what is wrong.

    Raises:
        ConfigError: A judge's server refuses the key or does not know the address.
        RewardError: A judge breaks its contract, or fails where its ``on_error`` is ``raise``.
    """
    if config.supervised is not None:
        return
    task = materials.train
    rows = [task[i] for i in range(min(CALLS, len(task)))]
    columns = {name: [row.columns[name] for row in rows] for name in task.columns}
    for name, part in deceivable(materials.reward):
        say(f"asking {name} about worthless responses ...")
        try:
            trial = try_to_deceive(name, part, [row.prompt for row in rows], columns)
        except DataError as error:  # what an environment tells is known within episodes alone
            warn(f"reward {name!r} could not be tried with worthless responses: {error}")
            continue
        if trial.warning:
            warn(trial.warning)
        if trial.scored:
            say(str(trial))
