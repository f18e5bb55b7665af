r"""TRL's own GRPOTrainer on our instructions and rewards: does it arrive where ours does?

    python -m benchmarks.crosscheck runs/short-answers-sft-s0 --seed 0 --out runs/trl-grpo-s0
    instructrec train short_answers --variant ours-group --seed 0 --policy.model \
        runs/short-answers-sft-s0 --ppo.advantage group --ppo.num_generations 4 \
        --ppo.prompt_filter null --ppo.entropy_coef 0 --ppo.num_updates 20 --ppo.eval_every 0
    instructrec evaluate runs/trl-grpo-s0 --task closed_answers --limit 400 --max_new_tokens 8
    instructrec compare trl=runs/eval-... ours=runs/ours-group-s0

Same start, prompts, reward, number of responses, optimizer steps, learning rate and clipping; what
remains different is the trainer. The trained policy is written as a plain Hugging Face folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks.stopwatch import train_last_half
from instructrec.devices import pick_device, pick_dtype
from instructrec.envs.tasks.base import iterate, make_task
from instructrec.policies.loading import load_source
from instructrec.rewards import make_reward


def settings(given: argparse.Namespace, folder: str) -> GRPOConfig:
    """TRL's settings for what the recipe ``short_answers`` does with groups of four answers."""
    device = pick_device("auto")
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=given.episodes // given.mini_batches,
        steps_per_generation=given.mini_batches,
        num_generations=given.generations,
        max_steps=given.updates * given.mini_batches,
        max_completion_length=given.response_length,
        temperature=1.0,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=given.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=16,
        adam_beta2=0.95,
        weight_decay=0.0,
        gradient_checkpointing=False,
        bf16=pick_dtype("auto", device) == torch.bfloat16,
        use_cpu=device.type == "cpu",
        seed=given.seed,
        report_to="none",
        save_strategy="no",
        logging_steps=given.mini_batches,
        disable_tqdm=True,
    )


def rows_of(task: str, size: int) -> Dataset:
    """The instructions as conversations, with the system message that our policies are given."""
    system = {"role": "system", "content": ""}
    return Dataset.from_list(
        [
            {"prompt": [system, {"role": "user", "content": item.prompt}], **item.columns}
            for item in iterate(make_task(task, split="train", size=size))
        ]
    )


def train(given: argparse.Namespace) -> None:
    """Trains and writes the policy."""
    source = load_source(given.start)
    train_last_half(source.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=source.model,
            reward_funcs=[make_reward("exact_match")],
            args=settings(given, folder),
            train_dataset=rows_of(given.task, given.updates * given.episodes // given.generations),
            processing_class=source.tokenizer,
        )
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(given.out)
    source.tokenizer.save_pretrained(given.out)
    print(f"written: {given.out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start", help="run folder or Hugging Face folder to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained policy")
    parser.add_argument("--task", default="closed_answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=128, help="responses of an update")
    parser.add_argument("--generations", type=int, default=4, help="responses to an instruction")
    parser.add_argument("--mini-batches", type=int, default=4)
    parser.add_argument("--response-length", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1.2e-4)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
