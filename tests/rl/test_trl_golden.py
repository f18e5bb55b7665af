"""Our formulas give the numbers of TRL's own code, wherever the two mean the same thing.

``tests/golden/make_trl_1_12.py`` recorded one update of TRL 1.12.0's PPOTrainer: a rollout of
eight responses, then two epochs (the second one meets the clips), for two values of lambda. The
recording is in float64, so 1e-6 leaves no room for a formula that is only nearly the same.

Shape suffixes: B responses, T positions, L values of lambda, E epochs.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from instructrec.policies.trunk import Trunk
from instructrec.rl.advantages import gae, whiten
from instructrec.rl.compat import post_eos_terminal, whiten_unbiased
from instructrec.rl.kl import k1, token_rewards
from instructrec.rl.losses import LossBatch, LossSettings, ppo_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "trl_1_12_ppo.npz"
LAMBDAS = (0.95, 1.0)
EOS = 1


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        recorded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    assert tuple(recorded["lam"].tolist()) == LAMBDAS
    mask_BT = ~recorded["padding"]
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    scores_BT = torch.zeros_like(recorded["values"])
    scores_BT = scores_BT.scatter(1, last_B1, recorded["scores"][:, None])
    return SimpleNamespace(**recorded, mask_BT=mask_BT, scores_BT=scores_BT)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def canonical(golden, lam):
    """Advantages and returns as we estimate them: the score on the last token."""
    kl_BT = k1(golden.logprobs, golden.ref_logprobs)
    rewards_BT = token_rewards(golden.scores_BT, kl_BT, golden.mask_BT, golden.kl_coef.item())
    return gae(rewards_BT, golden.values, golden.mask_BT, golden.gamma.item(), lam)


def compatible(golden, lam):
    """The same with the score behind the end token."""
    kl_BT = k1(golden.logprobs, golden.ref_logprobs)
    scores_BT, mask_BT = post_eos_terminal(golden.scores_BT, golden.mask_BT)
    rewards_BT = token_rewards(scores_BT, kl_BT, mask_BT, golden.kl_coef.item())
    return gae(rewards_BT, golden.values, mask_BT, golden.gamma.item(), lam)


def test_the_recording_has_every_kind_of_response(golden):
    ended_B = (golden.responses == EOS).any(1)
    full_B = golden.mask_BT.all(1)
    assert {(bool(a), bool(b)) for a, b in zip(ended_B, full_B, strict=True)} == {
        (True, False), (True, True), (False, True),
    }  # fmt: skip
    assert {1, 9} < set(golden.mask_BT.sum(1).tolist())
    assert golden.kl.abs().max() > 1


def test_the_kl_is_that_of_trl(golden):
    kl_BT = k1(golden.logprobs, golden.ref_logprobs)
    equal(kl_BT, golden.kl)
    equal(torch.where(golden.mask_BT, kl_BT, 0.0).sum(1).mean(), golden.logged_kl)


def test_the_token_rewards_are_those_of_trl_with_the_score_behind_the_end(golden):
    scores_BT, mask_BT = post_eos_terminal(golden.scores_BT, golden.mask_BT)
    assert torch.equal(mask_BT, ~golden.padding_behind_end)
    equal(token_rewards(scores_BT, golden.kl, mask_BT, golden.kl_coef.item()), golden.rewards)


@pytest.mark.parametrize("i", range(len(LAMBDAS)), ids=[f"lambda {lam}" for lam in LAMBDAS])
def test_advantages_and_returns_are_those_of_trl_with_the_score_behind_the_end(golden, i):
    advantages_BT, returns_BT = compatible(golden, LAMBDAS[i])
    equal(advantages_BT, golden.advantages[i])
    equal(returns_BT, golden.returns[i])


def test_at_lambda_1_the_place_of_the_score_changes_no_advantage(golden):
    advantages_BT, returns_BT = canonical(golden, 1.0)
    last = LAMBDAS.index(1.0)
    equal(advantages_BT, torch.where(golden.mask_BT, golden.advantages[last], 0.0))
    equal(returns_BT, torch.where(golden.mask_BT, golden.returns[last], 0.0))


def test_below_lambda_1_it_changes_exactly_the_responses_with_a_dummy_step(golden):
    advantages_BT, _ = canonical(golden, 0.95)
    expected_BT = torch.where(golden.mask_BT, golden.advantages[0], 0.0)
    full_B = golden.mask_BT.all(1)
    equal(advantages_BT[full_B], expected_BT[full_B])
    difference_B = (advantages_BT - expected_BT).abs().amax(1)
    assert (difference_B[~full_B] > 1e-3).all()


@pytest.mark.parametrize("i", range(len(LAMBDAS)), ids=[f"lambda {lam}" for lam in LAMBDAS])
def test_whitened_advantages_are_those_of_trl(golden, i):
    advantages_BT, _ = compatible(golden, LAMBDAS[i])
    equal(whiten_unbiased(advantages_BT, golden.mask_BT), golden.whitened[i])


def test_our_whitening_is_that_of_trl_but_for_the_count_less_one(golden):
    n = golden.mask_BT.sum()
    ours_BT = whiten(golden.advantages[0], golden.mask_BT, centre=True, std_floor=0.0)
    equal(ours_BT * ((n - 1) / n).sqrt(), golden.whitened[0])


def losses(golden, i, epoch):
    """Policy loss, value loss, their gradients and statistics on the recording's inputs.

    Two calls, since TRL averages the value loss over the dummy steps as well.
    """
    logprobs = golden.new_logprobs[i, epoch].clone().requires_grad_()
    values = golden.new_values[i, epoch].clone().requires_grad_()
    clip, clip_value = golden.cliprange.item(), golden.cliprange_value.item()
    inputs = {
        "old_logprobs": golden.logprobs,
        "old_values": golden.values,
        "returns": golden.returns[i],
    }
    results = []
    for mask_BT, advantages_BT, vf_coef in (
        (golden.mask_BT, golden.whitened[i], 0.0),
        (~golden.padding_behind_end, torch.zeros_like(values), golden.vf_coef.item()),
    ):
        batch = LossBatch(**inputs, advantages=advantages_BT, action_mask=mask_BT)
        settings = LossSettings(clip, clip, clip_value, vf_coef=vf_coef)
        no_entropy = torch.zeros_like(values)
        tokens = float(mask_BT.sum())
        results.append(ppo_loss(batch, logprobs, values, no_entropy, settings, tokens))
    (policy_loss, policy_stats), (value_loss, value_stats) = results
    total = policy_loss + value_loss
    gradients = torch.autograd.grad(total, (logprobs, values))
    return total.detach(), policy_stats, value_stats, gradients


@pytest.mark.parametrize("i", range(len(LAMBDAS)), ids=[f"lambda {lam}" for lam in LAMBDAS])
@pytest.mark.parametrize("epoch", [0, 1])
def test_losses_and_their_gradients_are_those_of_trl(golden, i, epoch):
    total, policy_stats, value_stats, gradients = losses(golden, i, epoch)
    equal(policy_stats["policy_loss"], golden.policy_loss[i, epoch])
    equal(value_stats["value_loss"], golden.value_loss[i, epoch])
    equal(total, golden.loss[i, epoch])
    equal(gradients[0], golden.logprob_gradient[i, epoch])
    equal(gradients[1], golden.value_gradient[i, epoch])
    assert golden.logprob_gradient[i, epoch].abs().max() > 1e-2
    assert golden.value_gradient[i, epoch].abs().max() > 1e-3


@pytest.mark.parametrize("i", range(len(LAMBDAS)), ids=[f"lambda {lam}" for lam in LAMBDAS])
def test_the_clips_decide_where_they_do_in_trl(golden, i):
    """TRL logs the mean over both epochs."""
    epochs = [losses(golden, i, epoch) for epoch in (0, 1)]
    for side, counted, logged in (
        (1, "clipped", golden.logged_clipped[i]),
        (2, "value_clipped", golden.logged_value_clipped[i]),
    ):
        shares = [float(epoch[side][counted] / epoch[side]["tokens"]) for epoch in epochs]
        assert shares[0] == 0 and 0.1 < shares[1] < 0.9
        assert np.mean(shares) == pytest.approx(logged.item(), abs=1e-6)


def test_the_score_moves_behind_the_end_by_hand():
    scores_BT = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    moved_BT, wider_BT = post_eos_terminal(scores_BT, mask_BT)
    assert moved_BT.tolist() == [[0.0, 0.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]
    assert wider_BT.tolist() == [[True, True, True], [True, True, True], [False, False, False]]


def test_advantages_with_the_score_behind_the_end_by_hand():
    scores_BT, mask_BT = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[True, True, False]])
    values_BT = torch.tensor([[1.0, 0.5, 4.0]])
    moved_BT, wider_BT = post_eos_terminal(scores_BT, mask_BT)
    advantages_BT, _ = gae(moved_BT, values_BT, wider_BT, 1.0, 0.5)
    # dummy: 2 - 4 = -2; end token: (4 - 0.5) - 0.5·2 = 2.5; first: (0.5 - 1) + 0.5·2.5 = 0.75
    assert advantages_BT.tolist() == [[0.75, 2.5, -2.0]]
    canonical_BT, _ = gae(scores_BT, values_BT, mask_BT, 1.0, 0.5)
    # the end token should get its score: 2 - 0.5 = 1.5; first: (0.5 - 1) + 0.5·1.5 = 0.25
    assert canonical_BT.tolist() == [[0.25, 1.5, 0.0]]


def test_other_turns_have_no_place_behind_the_end():
    with pytest.raises(AssertionError, match="one run of action tokens"):
        post_eos_terminal(torch.zeros(1, 3), torch.tensor([[True, False, True]]))


def test_whitening_with_the_count_less_one_by_hand():
    advantages_BT, mask_BT = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    expected = [[-(0.5**0.5), 0.5**0.5, 0.0]]  # mean 2, variance (1 + 1) / (2 - 1)
    torch.testing.assert_close(whiten_unbiased(advantages_BT, mask_BT), torch.tensor(expected))


def grpo_trainer(policy, folder):
    """TRL's own trainer, with nothing of ours in it."""
    settings = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        loss_type="bnpo",
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=0.7,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
    )
    return GRPOTrainer(
        model=policy.model,
        reward_funcs=[lambda prompts, **_: [0.0] * len(prompts)],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=policy.tokenizer,
    )


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_the_loss_of_trls_grpo_has_our_gradient_for_advantages_per_token(toy, tmp_path):
    generator = torch.Generator().manual_seed(0)
    prompt_BP = torch.randint(97, 123, (4, 3), generator=generator)
    response_BT = torch.randint(97, 123, (4, 6), generator=generator)
    mask_BT = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]
    advantages_BT = torch.randn(4, 6, generator=generator) * mask_BT

    policy = toy.policy()
    trunk = Trunk(policy.model)
    final_BLH, _ = trunk.full(torch.cat([prompt_BP, response_BT], 1))
    states_NH = final_BLH[:, prompt_BP.shape[1] - 1 : -1][mask_BT]
    logprobs_N, entropy_N = trunk.token_logprobs(states_NH, response_BT[mask_BT], 0.7)
    noise_N = 0.4 * torch.randn(logprobs_N.shape, generator=generator)
    old_N = logprobs_N.detach() + noise_N
    zeros_N = torch.zeros_like(old_N)
    batch = LossBatch(old_N, advantages_BT[mask_BT], zeros_N, zeros_N, zeros_N == 0)
    settings = LossSettings(0.2, 0.28, None, vf_coef=0.0)
    loss, stats = ppo_loss(batch, logprobs_N, zeros_N, entropy_N, settings, len(old_N))
    assert 0 < stats["clipped"] < stats["tokens"]
    loss.backward()

    twin = toy.policy()
    trainer = grpo_trainer(twin, tmp_path)
    trainer.current_gradient_accumulation_steps = 1  # TRL's loop sets it
    inputs = {
        "prompt_ids": prompt_BP,
        "prompt_mask": torch.ones_like(prompt_BP),
        "completion_ids": response_BT,
        "completion_mask": mask_BT.long(),
        "advantages": advantages_BT,
        "old_per_token_logps": torch.zeros(4, 6).masked_scatter(mask_BT, old_N),
        "num_items_in_batch": mask_BT.sum(),
    }
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    expected.backward()
    equal(loss, expected)
    theirs = dict(twin.model.named_parameters())
    for name, weight in policy.model.named_parameters():
        equal(weight.grad, theirs[name].grad)
    assert max(weight.grad.abs().max() for weight in theirs.values()) > 0.05
