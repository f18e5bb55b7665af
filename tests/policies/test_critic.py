"""Critics: what they start from, what they share, and what their gradients reach."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.critic import SeparateCritic, make_critic
from instructrec.policies.trunk import Trunk

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
ROW, COLUMN = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 3])


def make_policy(**changes):
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes), seed=0)


def values(critic, policy):
    hidden, _ = Trunk(policy.model).full(IDS)
    return critic(hidden[ROW, COLUMN], IDS, ROW, COLUMN)


def save_reward_model(folder, *, vocab_size=None):
    config = AutoConfig.from_pretrained(folder / "policy")
    config.num_labels, config.pad_token_id = 1, 0
    config.vocab_size = vocab_size or config.vocab_size
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder / "reward")
    return model.eval()


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_fresh_critic_values_everything_at_zero(kind):
    policy = make_policy()
    assert not values(make_critic(policy, kind, detach=True), policy).any()


@pytest.mark.parametrize("detach", [True, False])
def test_the_value_loss_reaches_the_trunk_only_when_it_is_not_detached(detach):
    policy = make_policy()
    critic = make_critic(policy, "shared", detach=detach)
    torch.nn.init.ones_(critic.head.linear.weight)
    values(critic, policy).sum().backward()
    assert critic.head.linear.weight.grad.any()
    reached = any(p.grad is not None and p.grad.any() for p in policy.model.parameters())
    assert reached == (not detach)


def test_a_separate_critic_trains_its_own_layers_and_shares_the_frozen_ones():
    policy = make_policy(train="last_layers", num_layers=1)
    critic = make_critic(policy, "separate", detach=True)
    assert isinstance(critic, SeparateCritic)
    torch.nn.init.ones_(critic.head.linear.weight)
    values(critic, policy).sum().backward()
    trained = [p for p in critic.backbone.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    assert all(p.grad is None for p in policy.model.parameters())
    theirs = {p.data_ptr(): p.requires_grad for p in policy.model.parameters()}
    for parameter in critic.backbone.parameters():
        assert (parameter.data_ptr() in theirs) == (not parameter.requires_grad)


def test_a_critic_from_a_reward_model_begins_with_its_scores(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "policy")
    reward_model = save_reward_model(tmp_path)
    critic = make_critic(policy, "separate", detach=True, source=str(tmp_path / "reward"))
    with torch.no_grad():
        scores = reward_model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, 0]
        ends = torch.tensor([3, 3])
        found = critic(torch.zeros(2, 1), IDS, torch.tensor([0, 1]), ends)
    torch.testing.assert_close(found, scores)


def test_a_critic_from_a_language_model_begins_with_its_trunk_and_a_zero_head(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "policy")
    critic = make_critic(policy, "separate", detach=True, source=str(tmp_path / "policy"))
    assert not values(critic, policy).any()
    ours = policy.model.base_model.state_dict()
    for name, weight in critic.backbone.state_dict().items():
        assert torch.equal(weight, ours[name])


def test_a_critic_that_cannot_read_the_policys_tokens_is_refused(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "policy")
    save_reward_model(tmp_path, vocab_size=100)
    with pytest.raises(PolicyError, match="vocabulary of 100 tokens"):
        make_critic(policy, "separate", detach=True, source=str(tmp_path / "reward"))


def test_a_classifier_that_reads_both_ways_is_no_critic(tmp_path):
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match=r"BertForSequenceClassification\) has no layer `score`"):
        make_critic(make_policy(), "separate", detach=True, source=str(tmp_path))


def test_a_missing_critic_is_an_error_that_names_it():
    with pytest.raises(PolicyError, match="nowhere"):
        make_critic(make_policy(), "separate", detach=True, source="./nowhere")
