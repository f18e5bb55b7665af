if not __name__.startswith("instructrec."):
    raise ImportError(
        f"import 'instructrec.{__name__}', not {__name__!r}: "
        "the second name would make a second copy of every registry"
    )

# What a response is worth: reward functions, their registry and their weighted sum.
# Every name is imported on first use, so that this package costs nothing to import.

from instructrec.lazy import lazy_exports

_exports = {
    "BoundReward": "instructrec.rewards.calling",
    "CombinedReward": "instructrec.rewards.combine",
    "FailedScore": "instructrec.rewards.base",
    "RewardBatch": "instructrec.rewards.base",
    "RewardFunction": "instructrec.rewards.base",
    "RewardInfo": "instructrec.rewards.base",
    "RewardSpec": "instructrec.rewards.parts",
    "Status": "instructrec.rewards.base",
    "check_reward": "instructrec.rewards.check",
    "completion_text": "instructrec.rewards.text",
    "list_rewards": "instructrec.rewards.registry",
    "make_reward": "instructrec.rewards.registry",
    "make_rewards": "instructrec.rewards.combine",
    "normalise_text": "instructrec.rewards.text",
    "register_reward": "instructrec.rewards.registry",
    "reward_info": "instructrec.rewards.registry",
}
__getattr__, __all__ = lazy_exports(__name__, _exports)
