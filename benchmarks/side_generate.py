"""One process of transformers' own decoding: ``python -m benchmarks.side_generate REQUEST REPORT``.

Decoding alone, with the weights in the precision that is computed in: sampling at temperature 1
from the whole distribution, responses of forced length, every prompt padded on the left.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.own_lengths import end_at_targets
from benchmarks.stopwatch import Stopwatch, mean_error, run_side
from benchmarks.workload import (
    EQUAL,
    GateError,
    Prompts,
    Report,
    Workload,
    asked_prompts,
    target_lengths,
)


@torch.no_grad()
def logprob_error(model: Any, prompts: Prompts) -> float:
    """Mean absolute difference to the frozen log-probs, by the logits that it draws from."""
    found = []
    for prompt, response in zip(prompts.ids, prompts.responses, strict=False):
        ids = torch.tensor([prompt + response], device=model.device)
        behind = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        found.append(behind.gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
    return mean_error(torch.stack(found), prompts)


def run(workload: Workload) -> Report:
    """Runs the rollouts of a workload.

    Raises:
        GateError: It asks for learning, or what was done is not what is to be compared.
    """
    if workload.epochs:
        raise GateError(f"this side only decodes: expected epochs 0, got {workload.epochs}.")
    torch.manual_seed(workload.seed)
    prompts = Prompts.read(workload.prompts)
    tokenizer = AutoTokenizer.from_pretrained(workload.model, padding_side="left")
    dtype = getattr(torch, workload.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(workload.model, dtype=dtype)
    model.eval().to(workload.device)
    report = Report("transformers", 0.0)
    watch = Stopwatch(workload, report)
    watch.pass_gate(logprob_error(model, prompts))
    watch.watch_prefill(model)
    if workload.lengths != EQUAL:
        end_at_targets(model, target_lengths(workload, prompts))
    asked, length = asked_prompts(workload, prompts), workload.response_length
    batch = tokenizer.pad({"input_ids": asked}, return_tensors="pt").to(workload.device)
    width = batch["input_ids"].shape[1]
    watch.restart()
    for _ in range(workload.warmup + workload.updates):
        with watch.phase("decode"):
            ids = model.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length,
                min_new_tokens=length,
            )
        responses = ids[:, width:]
        watch.note_answers(asked, (responses != tokenizer.pad_token_id).sum(1).tolist())
        watch.losses = [0.0]  # there is none
        watch.finish_update()
    report.settings = {
        "algorithm": "decoding",
        "weights": workload.dtype,
        "compute": workload.dtype,
    }
    return watch.conclude()


if __name__ == "__main__":
    run_side(run)
