"""One process of TRL's GRPOTrainer: ``python -m benchmarks.side_trl116 WORKLOAD REPORT``.

It is what users of TRL run since its PPOTrainer is gone: no critic, no reference (``beta`` is 0),
a group of responses to each prompt. Tokens and optimizer steps are those of the workload.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.side_ours import short_words
from benchmarks.stopwatch import Stopwatch, mean_error, run_side, train_last_half
from benchmarks.workload import (
    Prompts,
    Report,
    Workload,
)


class WatchedTrainer(GRPOTrainer):
    """TRL's trainer, timed where its parts begin and end; what they do is unchanged."""

    watch: Stopwatch

    def _generate(self, prompts: list[Any]) -> Any:
        with self.watch.phase("decode"):
            return super()._generate(prompts)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.watch.phase("values"):
            output = super()._generate_and_score_completions(inputs)
        pairs = zip(output["prompt_ids"], output["prompt_mask"].bool(), strict=True)
        asked = [ids[mask].tolist() for ids, mask in pairs]
        self.watch.note_answers(asked, output["completion_mask"].sum(1).tolist())
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward, and, in the first of a rollout, the rollout."""
        with self.watch.phase("update"):
            loss = super().training_step(*args, **kwargs)
        self.watch.losses.append(float(loss))
        return loss


class Boundary(TrainerCallback):
    """Ends an update after its last optimizer step."""

    def __init__(self, watch: Stopwatch, steps: int) -> None:
        self.watch, self.steps = watch, steps

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        optimizer = kwargs["optimizer"]
        self.watch.watch_optimizer(getattr(optimizer, "optimizer", optimizer))
        self.watch.restart()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step of the transformers library is an optimizer step."""
        if state.global_step % self.steps == 0:
            self.watch.finish_update()


def arguments_of(workload: Workload, output_dir: str) -> GRPOConfig:
    """TRL's settings for a workload; what it does not name keeps its default."""
    accumulation = workload.episodes // workload.mini_batches // workload.micro_batch_size
    return GRPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=workload.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=workload.mini_batches * accumulation,
        num_iterations=workload.epochs,
        num_generations=workload.generations,
        max_steps=workload.steps * (workload.warmup + workload.updates),
        max_completion_length=workload.response_length,
        generation_kwargs={"min_new_tokens": workload.response_length},
        temperature=1.0,
        beta=workload.kl_coef,
        learning_rate=workload.learning_rate,
        gradient_checkpointing=False,
        bf16=workload.dtype == "bfloat16",
        use_cpu=workload.device == "cpu",
        seed=workload.seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


@torch.no_grad()
def logprob_error(trainer: GRPOTrainer, prompts: Prompts) -> float:
    """Mean absolute difference to the frozen log-probs, on the path of TRL's loss."""
    pairs = list(zip(prompts.ids, prompts.responses, strict=False))
    width = max(len(prompt) for prompt, _ in pairs)
    padding = [width - len(prompt) for prompt, _ in pairs]
    rows = [[0] * n + p + r for n, (p, r) in zip(padding, pairs, strict=True)]
    length = len(prompts.responses[0])
    masks = [[0] * n + [1] * (width - n + length) for n in padding]
    device = trainer.accelerator.device
    with trainer.compute_loss_context_manager():
        logprobs = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.tensor(rows, device=device),
            torch.tensor(masks, device=device),
            length,
        )[0]
    return mean_error(logprobs, prompts)


def run(workload: Workload) -> Report:
    """Runs the updates of a workload.

    Raises:
        GateError: What it does is not what is to be compared.
    """
    prompts = Prompts.read(workload.prompts)
    tokenizer = AutoTokenizer.from_pretrained(workload.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32)
    if workload.train == "last_layers":
        train_last_half(model)
    report = Report(f"trl{trl.__version__}", 0.0)
    watch = Stopwatch(workload, report)
    texts = prompts.rendered[: workload.episodes // workload.generations]
    adapter = None
    if workload.train == "lora":
        from peft import LoraConfig

        adapter = LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    rewards: list[Any] = [short_words]
    with tempfile.TemporaryDirectory() as folder:
        trainer = WatchedTrainer(
            model=model,
            reward_funcs=rewards,
            args=arguments_of(workload, folder),
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=tokenizer,
            callbacks=[Boundary(watch, workload.steps)],
            peft_config=adapter,
        )
        trainer.watch = watch
        watch.pass_gate(logprob_error(trainer, prompts))
        watch.watch_prefill(model)
        trainer.train()
    report.settings = {
        "algorithm": "GRPO",
        "critic": "none",
        "weights": "float32",
        "compute": workload.dtype,
    }
    return watch.conclude()


if __name__ == "__main__":
    run_side(run)
