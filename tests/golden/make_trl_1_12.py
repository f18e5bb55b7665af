"""Records one update of TRL 1.12.0's PPOTrainer as numbers that the tests compare with.

TRL removed its PPOTrainer in 1.13, so this script needs an environment of its own (a CPU build of
PyTorch will do)::

    python3 -m venv build/trl112
    build/trl112/bin/pip install torch==2.13.0
    build/trl112/bin/pip install trl==1.12.0 transformers==5.23.0 accelerate==1.15.0 \\
        datasets==5.2.0 numpy==2.4.6
    build/trl112/bin/python tests/golden/make_trl_1_12.py

It writes ``trl_1_12_ppo.npz`` beside itself, the same bytes every time on the same machine. What
is recorded are the variables of TRL's own ``train``, read where it whitens and where it runs
backward. Replaced are only the sampler (responses are given, so that they have the lengths we
want) and the order of the minibatch. The models are in float64: what differs between two
implementations is then a formula, not rounding.

Shapes: B responses, T positions, L values of lambda, E epochs over the one minibatch.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.experimental.ppo.ppo_trainer import masked_whiten

TARGET = Path(__file__).with_name("trl_1_12_ppo.npz")
PAD, EOS, VOCABULARY = 0, 1, 24
LENGTHS = (10, 10, 7, 5, 10, 1, 8, 9)
"""Tokens of each response. Those shorter than 10 end with the end token; so does row 1."""
ROWS_WITH_EOS = (1, 2, 3, 5, 6, 7)
LAMBDAS = (0.95, 1.0)
SETTINGS = {
    "kl_coef": 0.2,
    "temperature": 0.7,
    "missing_eos_penalty": 1.0,
    "gamma": 1.0,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
}
ROLLOUT = {
    "responses": "responses",
    "logprobs": "logprobs",
    "ref_logprobs": "ref_logprobs",
    "values": "values",
    "scores": "scores",
    "kl": "kl",
    "rewards": "rewards",
    "padding": "padding_mask",
    "padding_behind_end": "padding_mask_p1",
}
"""Arrays of the rollout, the same for every lambda, and what ``train`` calls them."""
EPOCH = {
    "new_logprobs": "new_logprobs",
    "new_values": "vpred",
    "policy_loss": "pg_loss",
    "value_loss": "vf_loss",
    "loss": "loss",
}
"""Arrays of each epoch, and what ``train`` calls them."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer; only its special tokens matter."""
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def model(kind: Any, seed: int) -> Any:
    """A one-layer model with weights large enough that its outputs differ between tokens."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
        num_labels=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return kind(config).double()


def perturbed(policy: nn.Module) -> nn.Module:
    """A reference that is not the policy, so that the KL is not 0."""
    reference = model(Qwen2ForCausalLM, seed=0)
    reference.load_state_dict(policy.state_dict())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return reference.requires_grad_(False)


def given_responses() -> Tensor:
    """The responses (B, T): random words, the end token where a response ends, then padding."""
    generator = torch.Generator().manual_seed(3)
    responses = torch.randint(2, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    for row, length in enumerate(LENGTHS):
        if row in ROWS_WITH_EOS:
            responses[row, length - 1] = EOS
            responses[row, length:] = PAD
    return responses


def recorded(tensor: Any) -> np.ndarray:
    """A copy as an array: TRL changes some tensors in place."""
    return tensor.detach().clone().numpy()


def spy(trainer: PPOTrainer, record: dict[str, Any]) -> None:
    """Copies variables of ``train`` whenever it whitens advantages or runs backward."""
    backward = trainer.accelerator.backward

    def spying_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        scope = sys._getframe(1).f_locals
        record.update({name: recorded(scope[theirs]) for name, theirs in ROLLOUT.items()})
        record["advantages"] = recorded(values)
        record["returns"] = recorded(scope["returns"])
        whitened = masked_whiten(values, mask, shift_mean)
        record["whitened"] = recorded(whitened.masked_fill(~mask, 0))
        return whitened

    def spying_backward(loss: Tensor, **kwargs: Any) -> None:
        scope = sys._getframe(1).f_locals
        scope["new_logprobs"].retain_grad()
        scope["vpred"].retain_grad()
        backward(loss, **kwargs)
        for name, theirs in EPOCH.items():
            record.setdefault(name, []).append(recorded(scope[theirs]))
        for name, theirs in (("logprob_gradient", "new_logprobs"), ("value_gradient", "vpred")):
            record.setdefault(name, []).append(recorded(scope[theirs].grad))

    ppo_trainer.masked_whiten = spying_whiten
    trainer.accelerator.backward = spying_backward


def sample_given(policy: nn.Module, queries: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Stands in for TRL's ``batch_generation``: given responses, and the logits of them."""
    query_responses = torch.cat([queries, given_responses()], 1)
    logits = ppo_trainer.forward(policy, query_responses, PAD).logits[:, queries.shape[1] - 1 : -1]
    return query_responses, logits / (SETTINGS["temperature"] + 1e-7)


def one_update(lam: float, output_dir: str) -> dict[str, Any]:
    """Runs TRL's trainer for one rollout and two epochs; returns what was recorded."""
    policy = model(Qwen2ForCausalLM, seed=0)
    prompts = [list(range(2, 4 + i % 4)) for i in range(len(LENGTHS))]
    args = PPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=len(LENGTHS),
        total_episodes=len(LENGTHS),
        response_length=max(LENGTHS),
        stop_token="eos",
        num_ppo_epochs=2,
        learning_rate=0.002,  # so large that the second epoch meets both clips
        lam=lam,
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **SETTINGS,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer(),
        model=policy,
        ref_model=perturbed(policy),
        reward_model=model(Qwen2ForSequenceClassification, seed=2),
        value_model=model(Qwen2ForSequenceClassification, seed=1),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]),
    )
    record: dict[str, Any] = {}
    spy(trainer, record)
    trainer.train()
    logged = trainer.state.log_history[-1]
    record["logged_kl"] = logged["objective/kl"]
    record["logged_clipped"] = logged["policy/clipfrac_avg"]
    record["logged_value_clipped"] = logged["val/clipfrac_avg"]
    return record


def main() -> None:
    """Writes the fixture."""
    assert trl.__version__ == "1.12.0", f"trl {trl.__version__}: expected 1.12.0"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ppo_trainer.batch_generation = sample_given
    np.random.permutation = np.arange
    with tempfile.TemporaryDirectory() as output_dir:
        records = [one_update(lam, output_dir) for lam in LAMBDAS]
    arrays = {name: np.asarray(value) for name, value in SETTINGS.items()}
    arrays["lam"] = np.asarray(LAMBDAS)
    for name in records[0]:
        values = [np.asarray(record[name]) for record in records]
        shared = name in ROLLOUT or name == "logged_kl"
        assert not shared or all(np.array_equal(values[0], value) for value in values), name
        arrays[name] = values[0] if shared else np.stack(values)
    np.savez_compressed(TARGET, **arrays)
    for name, array in arrays.items():
        print(f"{name:22}{array.dtype!s:9}{array.shape}")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
