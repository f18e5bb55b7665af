"""What must hold on a CUDA device; `make gpu-check` runs these."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = ["a", "count to ten please", "hi there", "a longer question?"]


def both(model: str, **settings):
    """The same policy on the GPU and on the CPU, in float32."""
    return [
        load_policy(PolicyConfig(model=model, dtype="float32", device=device, **settings), seed=1)
        for device in ("cuda", "cpu")
    ]


@pytest.mark.parametrize("model", ["tiny", "smollm2-135m"])
def test_greedy_answers_are_those_of_the_cpu(model):
    gpu, cpu = (
        policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=8, temperature=0.0))
        for policy in both(model)
    )
    assert gpu.response_ids == cpu.response_ids
    for ours, theirs in zip(gpu.logprobs, cpu.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"train": "full"},
        {"train": "last_layers", "num_layers": 1},
        {"train": "lora"},
    ],
    ids=lambda settings: settings["train"],
)
def test_an_update_moves_weights_and_stays_finite(toy, settings):
    policy = load_policy(PolicyConfig(model="tiny", device="cuda", **settings), seed=0)
    before = policy.weights_hash()
    _, _, log = toy.train(dataclasses.replace(toy.fast, num_updates=2), policy=policy)
    assert policy.weights_hash() != before
    for metrics, _ in log:
        assert all(value == value for value in metrics.values())


def test_bfloat16_drifts_little(toy):
    policy = load_policy(PolicyConfig(model="smollm2-135m", device="cuda"), seed=0)
    config = dataclasses.replace(toy.fast, num_updates=1, learning_rate=1e-6)
    _, _, log = toy.train(config, policy=policy)
    assert log[0][0]["ppo/drift_mean"] <= 0.02


def test_a_resumed_run_continues(toy, tmp_path):
    settings = PolicyConfig(model="tiny", dtype="float32", device="cuda")
    config = dataclasses.replace(toy.fast, num_updates=4)
    stopped = iter([False, True])
    toy.train(
        config,
        policy=load_policy(settings, seed=0),
        checkpoint_dir=tmp_path,
        should_stop=lambda: next(stopped),
    )
    _, result, tail = toy.train(
        config, policy=load_policy(settings, seed=0), resume_from=tmp_path / "update-000002"
    )
    assert result.updates == 4 and [m["train/update"] for m, _ in tail] == [3.0, 4.0]
