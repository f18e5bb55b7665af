"""Before a training that learns from a judge: can it be talked into good grades?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from instructrec.envs import episode
from instructrec.errors import DataError
from instructrec.rewards.deceptions import deceivable, middle_of, try_to_deceive

if TYPE_CHECKING:
    from instructrec.envs.tasks.base import Task
    from instructrec.experiments.config import TrainConfig
    from instructrec.experiments.setup_run import Materials
    from instructrec.rewards.parts import Part
    from instructrec.rewards.scoring import PartScores


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
    for name, part in deceivable(materials.reward):
        if middle_of(part.reward) is None:
            warn(
                f"reward {name!r} has deceptions but no range with two ends, so that nobody can "
                "say which scores are good: it was not tried with them."
            )
            continue
        say(f"asking {name} about worthless responses ...")
        try:
            trial = try_to_deceive(
                name, part.reward, len(materials.train), _asking(part, materials.train)
            )
        except DataError as error:  # what an environment tells is known within episodes alone
            warn(f"reward {name!r} could not be tried with worthless responses: {error}")
            continue
        if trial.warning:
            warn(trial.warning)
        say(str(trial))


def _asking(part: Part, task: Task) -> Callable[[int, list[str]], PartScores]:
    def ask(index: int, responses: list[str]) -> PartScores:
        prompts, columns = episode.asked(task, [task[index]] * len(responses))
        return part.score(prompts, responses, columns)

    return ask
