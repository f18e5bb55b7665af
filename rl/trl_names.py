"""What TRL calls our settings, and which of its settings this trainer does not honour.

TRL's trainer is only the shell of ours: a setting of its ``GRPOConfig`` that our maths would ignore
is refused by name instead of being accepted without effect. Plain data, no TRL import.
"""

from __future__ import annotations

OURS = {
    "batch_size": "ppo.episodes_per_update",
    "beta": "ppo.kl_coef",
    "delta": "ppo.dual_clip",
    "epsilon": "ppo.cliprange",
    "epsilon_high": "ppo.cliprange_high",
    "generation_batch_size": "ppo.episodes_per_update",
    "gradient_accumulation_steps": "ppo.micro_batch_size",
    "kl_estimator": "ppo.kl_penalty (k1 in the reward, or k2 in the loss)",
    "lam": "ppo.lam_policy and ppo.lam_value",
    "local_batch_size": "ppo.episodes_per_update, divided by the number of processes",
    "local_mini_batch_size": "ppo.num_mini_batches (optimizer steps in each pass)",
    "local_rollout_forward_batch_size": "ppo.micro_batch_size",
    "mask_truncated_completions": "ppo.on_length = 'mask'",
    "max_completion_length": "ppo.response_length",
    "max_steps": "ppo.num_updates",
    "mini_batch_size": "ppo.num_mini_batches (optimizer steps in each pass)",
    "model_init_kwargs": "policy.dtype, policy.revision and policy.device",
    "num_iterations": "ppo.num_ppo_epochs",
    "num_sample_generations": "output.samples_per_update",
    "num_total_batches": "ppo.num_updates",
    "num_train_epochs": "ppo.num_updates",
    "per_device_train_batch_size": "ppo.micro_batch_size",
    "reward_model_path": "path, an option of the reward learned under rewards",
    "reward_weights": "the weights in rewards",
    "scale_rewards": "ppo.whiten_advantages, or ppo.advantage = 'group'",
    "sft_model_path": "policy.model",
    "steps_per_generation": "ppo.num_mini_batches",
    **dict.fromkeys(("stop_token", "stop_token_id"), "ppo.stop_strings"),
    "total_episodes": "ppo.num_updates times ppo.episodes_per_update",
    "use_adaptive_entropy": "ppo.entropy_target",
    "whiten_rewards": "ppo.whiten_advantages",
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), "policy.dtype"),
    **dict.fromkeys(("eval_strategy", "eval_steps"), "ppo.eval_every"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), "ppo.eval_every"),
    **dict.fromkeys(("save_strategy", "save_steps"), "ppo.save_every"),
    **dict.fromkeys(("seed", "data_seed", "full_determinism"), "seed (every run repeats itself)"),
    **dict.fromkeys(("report_to", "trackio_space_id", "trackio_bucket_id"), "tracking.report_to"),
    **dict.fromkeys(("log_completions", "num_completions_to_print"), "output.samples_per_update"),
    "auto_find_batch_size": "ppo.micro_batch_size",
    "lr_scheduler_type": "ppo.lr_schedule",
    "num_generations_eval": "eval.samples",
    "output_dir": "output.dir",
    "per_device_eval_batch_size": "eval.batch_size",
    "project": "tracking.project",
    "resume_from_checkpoint": "--resume",
    "run_name": "name",
    "save_total_limit": "ppo.keep_checkpoints",
    "use_cpu": "policy.device",
}
"""A name of TRL's ``PPOConfig`` or ``GRPOConfig`` -> what does the same here."""

_SAMPLING = "a filter on sampling makes the samples come from another policy than is trained"
_LOSS = "it belongs to a loss that is not PPO's"
_ENGINE = "rollouts come from this package's own decoder"
_OPTIMIZER = "the optimizer is AdamW with one group for the policy and one for the critic"
_PRECISION = "weights are float32, and products as policy.dtype says"
_MEMORY = (
    "activations are kept; ppo.micro_batch_size and ppo.micro_batch_tokens are what bounds their "
    "memory"
)
_LOGGING = "every update is one line of metrics.jsonl and one step of the tracker"
_SAVING = "every checkpoint holds the whole state, written at the end of an update"
_HUB = "nothing is uploaded; push policy/ of the run folder yourself"
_PROCESSES = "processes and devices follow from the launcher and policy.device"
_ROWS = "rollouts come from the environment, not from the rows of a dataset"
_EVALUATION = "evaluations play the environment and log the mean of each reward"
_ADAPTER = "there is one adapter (policy.train), and the reference is the policy without it"
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
    "router_aux_loss_coef": "the loss of a mixture's router is not added to PPO's",
    **dict.fromkeys(("model_adapter_name", "ref_adapter_name"), _ADAPTER),
    "dataset_num_proc": "no data set is tokenised before a run",
    "world_size": _PROCESSES,
    "trust_remote_code": "code from a model's repository is never run",
    "disable_dropout": "dropout is always off",
    "shuffle_dataset": "the order of the instructions follows from the seed",
    **dict.fromkeys(("optim", "optim_args", "optim_target_modules", "adam_epsilon"), _OPTIMIZER),
    **dict.fromkeys(("label_smoothing_factor", "use_liger_kernel", "liger_kernel_config"), _LOSS),
    "average_tokens_across_devices": "losses are always averaged over all tokens of a step",
    **dict.fromkeys(("tf32", "cast_lm_head_to_fp32"), _PRECISION),
    **dict.fromkeys(("gradient_checkpointing", "gradient_checkpointing_kwargs"), _MEMORY),
    **dict.fromkeys(("activation_checkpointing", "activation_checkpointing_kwargs"), _MEMORY),
    **dict.fromkeys(("torch_empty_cache_steps", "skip_memory_metrics"), _MEMORY),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _ENGINE),
    **dict.fromkeys(("use_cache", "pad_to_multiple_of", "ds3_gather_for_generation"), _ENGINE),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step"), _LOGGING),
    **dict.fromkeys(("log_on_each_node", "log_level", "log_level_replica"), _LOGGING),
    **dict.fromkeys(("logging_nan_inf_filter", "include_num_input_tokens_seen"), _LOGGING),
    **dict.fromkeys(("disable_tqdm", "trackio_static_space_id", "debug"), _LOGGING),
    **dict.fromkeys(("log_multimodal", "log_unique_prompts", "log_completions_hub_repo"), _LOGGING),
    **dict.fromkeys(("save_only_model", "save_on_each_node", "enable_jit_checkpoint"), _SAVING),
    **dict.fromkeys(("ignore_data_skip", "restore_callback_states_from_checkpoint"), _SAVING),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"), _HUB),
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("accelerator_config", "parallelism_config", "local_rank"), _PROCESSES),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed"), _PROCESSES),
    **dict.fromkeys(("ddp_backend", "ddp_timeout", "ddp_static_graph"), _PROCESSES),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_broadcast_buffers"), _PROCESSES),
    "ddp_find_unused_parameters": _PROCESSES,
    **dict.fromkeys(("dataloader_drop_last", "dataloader_num_workers"), _ROWS),
    **dict.fromkeys(("dataloader_pin_memory", "dataloader_persistent_workers"), _ROWS),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_in_order"), _ROWS),
    **dict.fromkeys(("dataloader_multiprocessing_context", "remove_unused_columns"), _ROWS),
    **dict.fromkeys(("label_names", "train_sampling_strategy", "length_column_name"), _ROWS),
    **dict.fromkeys(("eval_delay", "prediction_loss_only", "eval_on_start"), _EVALUATION),
    **dict.fromkeys(("eval_do_concat_batches", "eval_use_gather_object"), _EVALUATION),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics"), _EVALUATION),
    **dict.fromkeys(("batch_eval_metrics", "greater_is_better"), _EVALUATION),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "each is a command of its own"),
    **dict.fromkeys(("entropy_coef_min", "entropy_coef_delta"), "see ppo.entropy_target"),
    "lr_scheduler_kwargs": "ppo.lr_schedule and ppo.warmup_steps say all of the schedule",
    "neftune_noise_alpha": "noise on the embeddings would part the sampler from the trainer",
}
"""A name of TRL's ``PPOConfig`` or ``GRPOConfig`` -> why it has no effect here and is refused."""


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
