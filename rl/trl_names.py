"""What TRL calls our settings, and which of its settings this trainer does not honour.

TRL's trainer is only the shell of ours: a setting of its ``GRPOConfig`` that our maths would ignore
is refused by name instead of being accepted without effect. Plain data, no TRL import.
"""

from __future__ import annotations

OURS = {
    "beta": "ppo.kl_coef",
    "delta": "ppo.dual_clip",
    "epsilon": "ppo.cliprange",
    "epsilon_high": "ppo.cliprange_high",
    "generation_batch_size": "ppo.episodes_per_update",
    "gradient_accumulation_steps": "ppo.micro_batch_size",
    "lam": "ppo.lam_policy and ppo.lam_value",
    "mask_truncated_completions": "ppo.on_length = 'mask'",
    "max_completion_length": "ppo.response_length",
    "max_steps": "ppo.num_updates",
    "model_init_kwargs": "policy.dtype, policy.revision and policy.device",
    "num_iterations": "ppo.num_ppo_epochs",
    "num_train_epochs": "ppo.num_updates",
    "per_device_train_batch_size": "ppo.micro_batch_size",
    "reward_weights": "the weights in rewards",
    "scale_rewards": "ppo.whiten_advantages, or ppo.advantage = 'group'",
    "steps_per_generation": "ppo.num_mini_batches",
    "stop_token": "ppo.stop_strings",
    "total_episodes": "ppo.num_updates times ppo.episodes_per_update",
    "use_adaptive_entropy": "ppo.entropy_target",
    "whiten_rewards": "ppo.whiten_advantages",
}
"""A name of TRL's ``PPOConfig`` or ``GRPOConfig`` -> what does the same here."""

_SAMPLING = "a filter on sampling makes the samples come from another policy than is trained"
_LOSS = "it belongs to a loss that is not PPO's"
_ENGINE = "rollouts come from this package's own decoder"
REFUSED = {
    **dict.fromkeys(("top_k", "top_p", "min_p", "repetition_penalty"), _SAMPLING),
    **dict.fromkeys(("generation_kwargs", "cache_implementation"), _ENGINE),
    **dict.fromkeys(("loss_type", "importance_sampling_level", "top_entropy_quantile"), _LOSS),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), _LOSS),
    **dict.fromkeys(("vespo_k_neg", "vespo_k_pos"), _LOSS),
    **dict.fromkeys(("vespo_lambda_neg", "vespo_lambda_pos"), _LOSS),
    **dict.fromkeys(("off_policy_mask_threshold", "use_bias_correction_kl"), _LOSS),
    "multi_objective_aggregation": "rewards are summed by their weights",
    "sync_ref_model": "the reference is always the policy at the start",
    "ref_model_mixup_alpha": "the reference is always the policy at the start",
    "ref_model_sync_steps": "the reference is always the policy at the start",
    "max_tool_calling_iterations": "tools belong to the environment",
    "chat_template_kwargs": "the environment writes the prompts",
    "router_aux_loss_coef": "mixture-of-experts models are not supported",
    "trust_remote_code": "code from a model's repository is never run",
    "disable_dropout": "dropout is always off",
    "shuffle_dataset": "the order of the instructions follows from the seed",
    "num_generations_eval": "use eval.samples",
    "log_completions": "samples.jsonl always holds responses; see output.samples_per_update",
}
"""A name of TRL's ``GRPOConfig`` -> why it has no effect here and is refused."""


def explain_trl_name(name: str) -> str | None:
    """Says what a setting of TRL is here; None for a name that is not TRL's.

    Args:
        name: A setting without its section, such as ``"num_iterations"``.
    """
    if name in OURS:
        return f"what TRL calls {name} is {OURS[name]} here"
    if name in REFUSED:
        return f"TRL's {name} is not honoured: {REFUSED[name]}"
    if name.startswith(("vllm_", "use_vllm", "transformers_", "use_transformers_")):
        return f"TRL's {name} is not honoured: {_ENGINE}"
    return None
