"""One process of ours: ``python -m benchmarks.side_ours WORKLOAD REPORT``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.stopwatch import Stopwatch, mean_error, run_side
from benchmarks.workload import (
    EQUAL,
    Prompts,
    Report,
    Workload,
    asked_prompts,
    target_lengths,
)
from instructrec.devices import pick_device, pick_dtype
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.phases import listening
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.generation import CachedDecoder, Decoded
from instructrec.policies.loading import load_source
from instructrec.policies.training_parts import choose_trained_weights
from instructrec.policies.trunk import Trunk, pad_right
from instructrec.rl.config import PPOConfig
from instructrec.rl.ppo import train_ppo

_LAPS = {"score": "time/score_s", "values": "time/advantage_s", "update": "time/update_s"}


class WatchedDecoder(CachedDecoder):
    """The policy's own decoder, with a note of the prompts that it got and a length for some."""

    prompt_ids: Sequence[list[int]] = ()
    targets: Mapping[tuple[int, ...], int] = {}
    """Tokens of the response to a prompt; a prompt that is not there leaves it to the sampling."""

    def generate(
        self, prompt_ids: Sequence[list[int]], sampling: Sampling, generator: torch.Generator
    ) -> list[Decoded]:
        """See Decoder.generate."""
        self.prompt_ids = prompt_ids
        return super().generate(prompt_ids, sampling, generator)

    def most_tokens(self, prompt: list[int], sampling: Sampling) -> int:
        """See CachedDecoder.most_tokens."""
        return self.targets.get(tuple(prompt), sampling.max_new_tokens)


def make_policy(workload: Workload) -> CausalLMPolicy:
    """The policy, as a training run loads it, but for responses that never end early."""
    loaded = load_source(workload.model)
    half = loaded.model.config.get_text_config().num_hidden_layers // 2
    config = PolicyConfig(
        model=workload.model,
        dtype="float32" if workload.dtype == "float32" else "bfloat16",
        device=workload.device,
        train=workload.train,  # type: ignore[arg-type]
        num_layers=max(half, 1) if workload.train == "last_layers" else None,
    )
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    model = choose_trained_weights(loaded, config, workload.seed).to(device).eval()
    decoder = WatchedDecoder(
        model,
        compute_dtype=dtype,
        eos_token_ids=(),
        pad_token_id=int(loaded.tokenizer.pad_token_id),
        max_length=2**31,
        detokenize=loaded.tokenizer.decode,
    )
    if workload.lengths != EQUAL:
        decoder.targets = target_lengths(workload, Prompts.read(workload.prompts))
    return CausalLMPolicy(
        model,
        loaded.tokenizer,
        config=config,
        compute_dtype=dtype,
        sampling=Sampling(),
        seed=workload.seed,
        decoder=decoder,
    )


@torch.no_grad()
def logprob_error(policy: CausalLMPolicy, prompts: Prompts) -> float:
    """Mean absolute difference to the frozen log-probs, by a whole pass of the trainer's trunk.

    What decoding, reuse, shared prompts, values and gradients compute is held by
    ``benchmarks.gate``.
    """
    trunk = Trunk(policy.model)
    pairs = list(zip(prompts.ids, prompts.responses, strict=False))
    ids_BL = pad_right([torch.tensor(p + r, device=policy.device) for p, r in pairs])
    starts = torch.tensor([len(p) for p, _ in pairs], device=policy.device)
    length = len(prompts.responses[0])
    rows_BT = torch.arange(len(pairs), device=policy.device)[:, None].expand(-1, length)
    columns_BT = starts[:, None] - 1 + torch.arange(length, device=policy.device)
    with policy.autocast():
        hidden_BLH, _ = trunk.full(ids_BL)
        logprobs, _ = trunk.token_logprobs(
            hidden_BLH[rows_BT, columns_BT].flatten(0, 1),
            ids_BL[rows_BT, columns_BT + 1].flatten(),
            1.0,
        )
    return mean_error(logprobs.view(len(pairs), length), prompts)


def settings(workload: Workload) -> PPOConfig:
    """Our settings for a workload; what it does not name keeps its default."""
    return PPOConfig(
        num_updates=workload.warmup + workload.updates,
        episodes_per_update=workload.episodes,
        num_generations=workload.generations,
        num_ppo_epochs=workload.epochs,
        num_mini_batches=workload.mini_batches,
        micro_batch_size=workload.micro_batch_size,
        learning_rate=workload.learning_rate,
        critic_learning_rate=workload.learning_rate,
        response_length=workload.response_length,
        kl_coef=workload.kl_coef,
        critic=workload.critic,  # type: ignore[arg-type]
    )


def short_words(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that costs nothing: the share of characters that are no letters."""
    return [sum(not c.isalpha() for c in text) / max(len(text), 1) for text in completions]


@contextmanager
def environment(workload: Workload, prompts: Prompts) -> Iterator[InstructionVectorEnv]:
    """An environment of exactly the prompts of one rollout."""
    texts = prompts.texts[: workload.episodes // workload.generations]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        rows = [{"id": str(i), "prompt": text, "reference": ""} for i, text in enumerate(texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        yield InstructionVectorEnv(
            workload.episodes,
            task=str(path),
            split="all",
            reward=short_words,
            autoreset_mode="DISABLED",
        )


def run_rollouts(
    policy: CausalLMPolicy, workload: Workload, prompts: Prompts, watch: Stopwatch
) -> None:
    """Answers the prompts of a workload and learns nothing."""
    sampling = replace(policy.sampling, max_new_tokens=workload.response_length)
    generator = torch.Generator().manual_seed(workload.seed)
    asked = asked_prompts(workload, prompts)
    watch.restart()
    for _ in range(workload.warmup + workload.updates):
        decoded = policy.decoder.generate(asked, sampling, generator)
        watch.note_answers(asked, [len(one.ids) for one in decoded])
        watch.losses = [0.0]  # there is none
        watch.finish_update()


def run(workload: Workload, side: str = "ours") -> Report:
    """Runs the updates of a workload, or its rollouts where it has no epochs.

    Raises:
        GateError: What it does is not what is to be compared.
    """
    prompts = Prompts.read(workload.prompts)
    policy = make_policy(workload)
    decoder: Any = policy.decoder
    report = Report(side, 0.0)
    watch = Stopwatch(workload, report)
    watch.pass_gate(logprob_error(policy, prompts))

    def on_phase(name: str) -> Any:
        watch.optimizer_steps += name == "optimizer"
        return watch.phase(name)

    def on_update(metrics: dict[str, float], rows: list[dict[str, Any]]) -> None:
        inner = dict(watch.phases)
        watch.phases |= {name: metrics[key] for name, key in _LAPS.items()}
        watch.phases["values"] -= inner.get("reference", 0.0)
        watch.phases["update"] -= inner.get("optimizer", 0.0)
        watch.note_answers(decoder.prompt_ids, [int(row["response_len"]) for row in rows])
        watch.losses = [metrics["ppo/policy_loss"], metrics["ppo/value_loss"]]
        watch.drift = metrics["ppo/drift_mean"]
        report.extra = {key: value for key, value in metrics.items() if key.startswith("speed/")}
        report.extra["rollout/reused"] = metrics["rollout/reused"]
        watch.finish_update()

    if not workload.epochs:
        with listening(on_phase):
            run_rollouts(policy, workload, prompts, watch)
        report.settings = {"algorithm": "decoding", "compute": workload.dtype}
        return watch.conclude()
    config = settings(workload)
    with environment(workload, prompts) as env, listening(on_phase):
        watch.restart()
        train_ppo(policy, env, config, seed=workload.seed, on_update=on_update)
    report.settings = {
        "algorithm": "PPO",
        "critic": config.critic,
        "weights": "float32",
        "compute": workload.dtype,
    }
    return watch.conclude()


if __name__ == "__main__":
    run_side(run)
