if not __name__.startswith("instructrec."):
    raise ImportError(
        f"import 'instructrec.{__name__}', not {__name__!r}: "
        "the second name would make a second copy of every registry"
    )

# How the policy learns: PPO on TRL's trainer, supervised fine-tuning, and their pure maths.
from instructrec.lazy import lazy_exports

_exports = {
    "Alarm": "instructrec.rl.monitors",
    "DPOConfig": "instructrec.rl.config",
    "MonitorRule": "instructrec.rl.monitor_config",
    "MonitorsConfig": "instructrec.rl.monitor_config",
    "PPOConfig": "instructrec.rl.config",
    "PPOLearner": "instructrec.rl.learner",
    "PPOTrainer": "instructrec.rl.ppo",
    "RaftLearner": "instructrec.rl.raft",
    "Pair": "instructrec.rl.dpo",
    "Rollout": "instructrec.rl.rollout",
    "SFTConfig": "instructrec.rl.config",
    "Demonstration": "instructrec.rl.sft",
    "Speedometer": "instructrec.rl.speed",
    "TrainingResult": "instructrec.rl.run_state",
    "rollout_of": "instructrec.rl.given",
    "run_dpo": "instructrec.rl.dpo",
    "run_sft": "instructrec.rl.sft",
    "train_ppo": "instructrec.rl.ppo",
    "train_raft": "instructrec.rl.raft",
}
__getattr__, __all__ = lazy_exports(__name__, _exports)
