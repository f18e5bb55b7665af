"""Learning with TRL 1.12's PPOTrainer: ``python -m benchmarks.learn_trl112 JOB CURVE``.

Runs in that release's own environment, without instructrec. It trains on exact match from a given
start and measures greedy answers to the validation instructions as it goes; the clock stands still
meanwhile. It ends when the target is reached, or when the time is up.
"""

from __future__ import annotations

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import TrainerCallback as Callback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.answers import Answers
from benchmarks.side_trl112 import CheapReward
from benchmarks.stopwatch import train_last_half

EVALUATED_TOGETHER = 50
"""Instructions that are answered in one batch of an evaluation."""


class Curve(Callback):
    """Measures every few updates and ends the training at the target or when the time is up.

    Args:
        job: What is to be done.
        measure: Share of right greedy answers of the policy as it is.
        out: Where the points go, after each of them.
    """

    def __init__(self, job: dict[str, Any], measure: Callable[[], float], out: Path) -> None:
        self.job, self.measure, self.out = job, measure, out
        self.points: list[dict[str, float]] = []
        self._spent, self._since = 0.0, 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The clock starts."""
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """An update has ended."""
        self._spent += time.perf_counter() - self._since
        late = self._spent >= self.job["cap_s"]
        if state.global_step % self.job["every"] == 0 or late:
            point = {
                "update": float(state.global_step),
                "seconds": self._spent,
                "exact_match": self.measure(),
            }
            self.points.append(point)
            self.out.write_text(json.dumps(self.points, indent=1), encoding="utf-8")
            print(f"trl 1.12  {point}", flush=True)
            if late or point["exact_match"] >= self.job["target"]:
                raise Reached
        self._since = time.perf_counter()
        return control


class Reached(Exception):
    """The target, or the end of the time; that trainer looks at no flag that would end it."""


def arguments_of(job: dict[str, Any], folder: str) -> PPOConfig:
    """TRL's settings; four steps for an update, one for each of its epochs."""
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=job["episodes"] // 4,
        gradient_accumulation_steps=4,
        local_rollout_forward_batch_size=64,
        total_episodes=job["episodes"] * job["most_updates"],
        num_ppo_epochs=4,
        response_length=job["response_length"],
        stop_token="eos",
        temperature=1.0,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=job["warmup_steps"],
        kl_coef=0.0,
        gradient_checkpointing=False,
        num_sample_generations=0,
        bf16=False,
        use_cpu=True,
        seed=job["seed"],
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )


@torch.no_grad()
def right_answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]], length: int) -> float:
    """Share of greedy answers that are right."""
    answers, right, pad = Answers(tokenizer, rows), 0.0, int(tokenizer.pad_token_id)
    for begin in range(0, len(rows), EVALUATED_TOGETHER):
        batch = [row["ids"] for row in rows[begin : begin + EVALUATED_TOGETHER]]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
        out = model.generate(
            input_ids=ids,
            attention_mask=(ids != pad).long(),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        right += float(answers.scores(ids, out[:, width:]).sum())
    return right / len(rows)


def reward_exact_match(answers: Answers) -> None:
    """Lets TRL's trainer score with ``answers`` where it asks its reward model."""
    forward = ppo_trainer.get_reward

    def scored(model: Any, sequences: Tensor, pad: int, context: int) -> Any:
        if isinstance(model, CheapReward):
            return None, answers.scores(sequences[:, :context], sequences[:, context:]), None
        return forward(model, sequences, pad, context)

    ppo_trainer.get_reward = scored


def main() -> None:
    """Trains as the job says and leaves the curve."""
    job, out = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype) for _ in range(2)
    )
    value = AutoModelForSequenceClassification.from_pretrained(
        job["model"], dtype=dtype, num_labels=1
    )
    train_last_half(policy, value)
    reward_exact_match(Answers(tokenizer, job["train"]))
    curve = Curve(
        job,
        lambda: right_answers(policy, tokenizer, job["validation"], job["response_length"]),
        out,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=arguments_of(job, folder),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference.eval().requires_grad_(False),
            reward_model=CheapReward(),
            value_model=value,
            train_dataset=Dataset.from_list([{"input_ids": row["ids"]} for row in job["train"]]),
            callbacks=[curve],
        )
        try:
            trainer.train()
        except Reached:
            return


if __name__ == "__main__":
    main()
