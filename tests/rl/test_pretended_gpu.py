"""Nothing mixes tensors of two devices; on a GPU that is pretended, as there may be none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from instructrec.policies import causal_lm, generation
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.labels import LabelPolicy
from instructrec.rl.config import DPOConfig, PPOConfig
from instructrec.rl.dpo import Pair, Preference
from instructrec.rl.dpo import _encode as encode_pairs
from instructrec.rl.durable import safetensors_chunks
from instructrec.rl.explaining import read_response
from instructrec.rl.given import rollout_of
from instructrec.rl.labels import Classification
from instructrec.rl.labels import _encode as encode_labels
from instructrec.rl.learner import PPOLearner
from instructrec.rl.raft import RaftLearner
from instructrec.rl.sft import Demonstration, Imitation
from instructrec.rl.sft import _encode as encode_demonstrations
from tests.pretended_gpu import GPU, MixedDevicesError, OnGpu, PretendedGpu

CONFIG = PPOConfig(
    episodes_per_update=8,
    num_mini_batches=2,
    num_ppo_epochs=1,
    micro_batch_size=2,
    response_length=4,
)


@pytest.fixture
def policy_on_gpu(monkeypatch):
    """Makes tiny policies on the pretended GPU."""
    monkeypatch.setattr(causal_lm, "pick_device", lambda name: GPU)
    monkeypatch.setattr(generation, "_free_memory", lambda device: 2**30)

    def make(**settings):
        config = PolicyConfig(model="tiny", dtype="float32", **settings)
        policy = load_policy(config, seed=0, sampling=Sampling(max_new_tokens=4))
        assert policy.device == GPU
        assert all(isinstance(weight, OnGpu) for weight in policy.model.parameters())
        return policy

    with PretendedGpu():
        yield make


def test_tensors_of_two_devices_are_told(policy_on_gpu):
    mine, theirs = torch.ones(2, device=GPU), torch.ones(2)
    with pytest.raises(MixedDevicesError, match=r"aten\.add"):
        mine + theirs
    with pytest.raises(MixedDevicesError, match="is indexed"):
        theirs[torch.tensor([0], device=GPU)]
    with pytest.raises(MixedDevicesError, match="numpy"):
        mine.numpy()
    policy = policy_on_gpu()
    with pytest.raises(MixedDevicesError, match="embedding"):
        policy.model(torch.tensor([[1, 2]]))
    assert (mine + theirs.to(GPU)).tolist() == [2.0, 2.0] and not (mine.cpu() + theirs).is_cuda


def learn(policy, config, kind=PPOLearner):
    """Two updates from rollouts of the policy; the learner."""
    learner = kind(policy, config, seed=0)
    count = config.num_generations
    for _ in range(2):
        policy.sync()
        with learner.reuse.keeping():
            answers = policy.respond([f"say {i // count}" for i in range(8)])
        rollout = rollout_of(
            answers.prompt_ids,
            answers.response_ids,
            [float(i % 3) for i in range(8)],
            logprobs=answers.logprobs,
            num_generations=count,
            states=answers.states,
        )
        rollout.unfinished[0] = not config.reuse_decoding
        stats = learner.update(rollout)
        assert all(value == value for value in stats.values())
        assert stats["rollout/reused"] == config.reuse_decoding
    return learner


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"train": "full"}, {"reuse_decoding": False, "gae_level": "turn", "entropy_coef": 0.01}),
        ({"train": "last_layers", "num_layers": 1}, {"kl_penalty": "loss"}),
        ({"train": "lora"}, {"advantage": "group", "num_generations": 2}),
        ({"train": "full"}, {"critic": "separate", "critic_warmup_updates": 1}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_updates_stay_on_the_gpu(policy_on_gpu, settings, changes):
    policy = policy_on_gpu(**settings)
    before = policy.weights_hash()
    learner = learn(policy, dataclasses.replace(CONFIG, **changes))
    assert policy.weights_hash() != before
    state = learner.state_dict()
    for moments in state["optimizer"].values():
        assert sum(map(len, safetensors_chunks(moments))) > 0
    learner.load_state_dict(state)


@pytest.mark.slow
def test_a_gradient_waits_as_often_for_many_micro_batches_as_for_one(policy_on_gpu):
    class Counting(PPOLearner):
        waits = ()

        def _learn(self, minibatch):
            before = OnGpu.waits
            super()._learn(minibatch)
            self.waits += (OnGpu.waits - before,)

    found = []
    for size in (4, 1):
        config = dataclasses.replace(CONFIG, micro_batch_size=size, reuse_decoding=False)
        found.append(learn(policy_on_gpu(), config, Counting).waits)
    assert found[0] == found[1] and 0 < max(found[0]) < 8


@pytest.mark.slow
def test_rejection_sampling_stays_on_the_gpu(policy_on_gpu):
    config = dataclasses.replace(CONFIG, num_generations=2, kl_coef=0.0)
    assert learn(policy_on_gpu(), config, RaftLearner).kept


def test_losses_of_given_answers_stay_on_the_gpu(policy_on_gpu):
    policy = policy_on_gpu(train="last_layers", num_layers=1)
    imitation, preference = Imitation(policy), Preference(policy, DPOConfig())
    rows = encode_demonstrations(policy, [Demonstration("one", "1"), Demonstration("two", "22")])
    pairs = encode_pairs(policy, [Pair("one", "1", "2"), Pair("two", "2", "111")])
    for objective, given in ((imitation, rows), (preference, preference.with_reference(pairs, 1))):
        batch = {name: part.to(GPU) for name, part in objective.collate(given).items()}
        objective.loss(batch, None).backward()
    assert all(p.grad is not None for p in policy.model.parameters() if p.requires_grad)


def test_labels_are_learned_and_given_on_the_gpu(policy_on_gpu):
    policy = LabelPolicy(policy_on_gpu(), ["yes", "no"])
    objective = Classification(policy)
    rows = encode_labels(policy, [Demonstration("one", "yes"), Demonstration("longer", "no")])
    batch = {name: part.to(GPU) for name, part in objective.collate(rows).items()}
    objective.loss(batch, None).backward()
    assert policy.model.label_head.weight.grad is not None
    drawn = policy.respond(["one", "longer"], sampling=Sampling(temperature=1.0))
    assert set(drawn.texts) <= {"yes", "no"}


def test_a_response_is_read_on_the_gpu(policy_on_gpu):
    policy = policy_on_gpu()
    found = read_response(policy, [1, 2, 3], [4, 5])
    assert len(found.logprobs) == len(found.entropy) == 2 and len(found.top[0]) == 5
