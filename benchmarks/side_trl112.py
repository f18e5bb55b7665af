"""One process of TRL 1.12's PPOTrainer: ``python -m benchmarks.side_trl112 WORKLOAD REPORT``.

Runs in an environment of its own, without instructrec. Three things about that trainer decide how
it is called. It ignores ``num_mini_batches``: it steps once an epoch, except in the last rollout of
a pass over the data, where every micro-batch is a step. So the data are exactly one rollout, and a
micro-batch is a minibatch: that gives the steps that were asked for. It stops at no token when
``stop_token`` is not set: where lengths differ, its decoding ends each row at its target. And it
computes in the precision that the weights are loaded in.
"""

from __future__ import annotations

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import tempfile
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.trainer.utils import selective_log_softmax

from benchmarks.own_lengths import end_at_targets
from benchmarks.stopwatch import Stopwatch, mean_error, run_side, train_last_half
from benchmarks.workload import (
    EQUAL,
    Prompts,
    Report,
    Workload,
    target_lengths,
)


class CheapBackbone(nn.Module):
    """What TRL takes for the transformer of a reward model."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """Returns the parity of the token ids as its only hidden state (B, L, 1)."""
        output = type("Output", (), {})()
        output.hidden_states = [(input_ids % 2).float()[..., None]]
        return output


class CheapReward(nn.Module):
    """A reward model that costs nothing: is the last token even or odd?"""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CheapBackbone()
        self.score = nn.Identity()


class Boundary(TrainerCallback):
    """Ends an update where TRL says so."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.watch.restart()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """An update of this trainer is a step of the transformers library."""
        self.watch.finish_update()


def load(workload: Workload) -> dict[str, Any]:
    """Policy, reference, value model and reward model."""
    dtype = getattr(torch, workload.dtype)
    policy = AutoModelForCausalLM.from_pretrained(workload.model, dtype=dtype)
    reference = AutoModelForCausalLM.from_pretrained(workload.model, dtype=dtype)
    value = AutoModelForSequenceClassification.from_pretrained(
        workload.model, dtype=dtype, num_labels=1
    )
    if workload.train == "last_layers":
        train_last_half(policy, value)
    return {
        "model": policy,
        "ref_model": reference.eval().requires_grad_(False),
        "value_model": value,
        "reward_model": CheapReward(),
    }


def arguments_of(workload: Workload, output_dir: str) -> PPOConfig:
    """TRL's settings for a workload; what it does not name keeps its default."""
    micro = workload.episodes // workload.mini_batches
    return PPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=workload.mini_batches,
        num_mini_batches=workload.mini_batches,
        local_rollout_forward_batch_size=min(workload.episodes, 64),
        total_episodes=workload.episodes * (workload.warmup + workload.updates),
        num_ppo_epochs=workload.epochs,
        response_length=workload.response_length,
        stop_token=None,
        temperature=1.0,
        learning_rate=workload.learning_rate,
        kl_coef=workload.kl_coef,
        gradient_checkpointing=False,
        num_sample_generations=0,
        bf16=False,
        use_cpu=workload.device == "cpu",
        seed=workload.seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


@torch.no_grad()
def logprob_error(policy: Any, prompts: Prompts, pad: int) -> float:
    """Mean absolute difference to the frozen log-probs, by the functions of TRL's update."""
    pairs = list(zip(prompts.ids, prompts.responses, strict=False))
    width = max(len(prompt) for prompt, _ in pairs)
    device = policy.device
    rows = [[pad] * (width - len(prompt)) + prompt + response for prompt, response in pairs]
    ids = torch.tensor(rows, device=device)
    logits = ppo_trainer.forward(policy, ids, pad).logits[:, width - 1 : -1]
    logprobs = selective_log_softmax(logits, torch.tensor(prompts.responses, device=device))
    return mean_error(logprobs, prompts)


def watch_trainer(trainer: PPOTrainer, watch: Stopwatch, pad: int) -> None:
    """Times the functions that TRL's training loop calls, without changing what they do."""
    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward
    reward, backward, log = ppo_trainer.get_reward, trainer.accelerator.backward, trainer.log

    def watched_generation(model: Any, queries: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        with watch.phase("decode"):
            sequences, logits = generate(model, queries, *args)
        responses = sequences[:, queries.shape[1] :]
        asked = [[t for t in row if t != pad] for row in queries.tolist()]
        watch.note_answers(asked, (responses != pad).sum(1).tolist())
        return sequences, logits

    def watched_forward(model: Any, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            with watch.phase("reference"):
                return forward(model, *args)
        if watch.innermost is None:
            watch.begin("update")  # it lasts until TRL logs what came out of it
        return forward(model, *args)

    def watched_reward(model: Any, *args: Any) -> Any:
        with watch.phase("score" if isinstance(model, CheapReward) else "values"):
            return reward(model, *args)

    def watched_backward(loss: Tensor, **kwargs: Any) -> None:
        watch.losses.append(float(loss.detach()))
        backward(loss, **kwargs)

    def watched_log(*args: Any, **kwargs: Any) -> None:
        watch.end()
        log(*args, **kwargs)

    ppo_trainer.batch_generation = watched_generation
    ppo_trainer.forward = watched_forward
    ppo_trainer.get_reward = watched_reward
    trainer.accelerator.backward = watched_backward
    trainer.log = watched_log
    watch.watch_prefill(trainer.policy_model)
    watch.watch_optimizer(trainer.optimizer.optimizer)


def run(workload: Workload) -> Report:
    """Runs the updates of a workload.

    Raises:
        GateError: What it does is not what is to be compared.
    """
    prompts = Prompts.read(workload.prompts)
    tokenizer = AutoTokenizer.from_pretrained(workload.model, padding_side="left")
    models = load(workload)
    report = Report(f"trl{trl.__version__}", 0.0)
    watch = Stopwatch(workload, report)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=arguments_of(workload, folder),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(
                [{"input_ids": ids} for ids in prompts.ids[: workload.episodes]]
            ),
            callbacks=[Boundary(watch)],
            **models,
        )
        pad = int(tokenizer.pad_token_id)
        watch.pass_gate(logprob_error(trainer.policy_model, prompts, pad))
        if workload.lengths != EQUAL:
            end_at_targets(trainer.policy_model, target_lengths(workload, prompts))
        watch_trainer(trainer, watch, pad)
        trainer.train()
    report.settings = {
        "algorithm": "PPO",
        "critic": "separate",
        "weights": workload.dtype,
        "compute": workload.dtype,
    }
    return watch.conclude()


if __name__ == "__main__":
    run_side(run)
