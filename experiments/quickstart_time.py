"""How long a quickstart takes: guessed from a few responses, corrected by what stages took."""

from __future__ import annotations

from collections.abc import Mapping

from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.rl.config import SFTConfig

_ROLLOUT, _EPOCH, _EXAMPLE, _VALIDATED, _MEASURED = 1.0, 0.6, 1.6, 0.4, 0.28
"""Cost of an episode, a pass over it, an SFT example, a validated and a measured response.

In units of a response of the untouched model, which rambles up to the limit, in a small batch.
"""
_SETUP_S = 20.0
"""Seconds that a stage takes besides: loading, writing, imports."""


def expected_s(config: QuickstartConfig, held_out: int, response_s: float) -> dict[str, float]:
    """Seconds that each stage will take, in their order.

    Args:
        config: The quickstart.
        held_out: Held-out instructions that there are.
        response_s: Seconds of one response of the untouched model, in a small batch.
    """
    sizes = config.eval
    measured = min(sizes.limit, held_out) + sizes.samples * min(sizes.sampled_limit, held_out)
    ppo = config.ppo
    episodes = ppo.num_updates * ppo.episodes_per_update
    work = {
        "base": 0.0,
        "sft": _supervised(config.sft, sizes.validation_limit),
        "sft-best": _supervised(config.best_sft, sizes.validation_limit),
        "ppo": (_ROLLOUT + _EPOCH * ppo.num_ppo_epochs) * episodes,
    }
    return {
        name: _SETUP_S + response_s * (cost + _MEASURED * measured) for name, cost in work.items()
    }


def left_s(expected: Mapping[str, float], finished: Mapping[str, object], so_far_s: float) -> float:
    """Seconds that the other stages will take, if they are as much slower as those before them.

    Args:
        expected: Seconds of each stage as they were guessed.
        finished: Stages that are over, by name.
        so_far_s: Seconds that those took together.
    """
    guessed = sum(seconds for name, seconds in expected.items() if name in finished)
    rest = sum(seconds for name, seconds in expected.items() if name not in finished)
    return rest * so_far_s / guessed if guessed else rest


def _supervised(sft: SFTConfig, validation_limit: int) -> float:
    """Cost of its training, in responses."""
    validations = 1 + sft.max_steps // sft.eval_every if sft.eval_every else 0
    validated = validations * (sft.validation_demonstrations + validation_limit)
    return _EXAMPLE * sft.max_steps * sft.batch_size + _VALIDATED * validated
