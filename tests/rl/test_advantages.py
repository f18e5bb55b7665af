from __future__ import annotations

import math

import pytest
import torch

from instructrec.rl.advantages import (
    batch_mean_advantages,
    discounted_returns,
    explained_variance,
    gae,
    group_advantages,
    is_nearer_than_mean,
    rloo_advantages,
    turn_gae,
    whiten,
)


def slow_gae(rewards, values, mask, gamma, lam):
    """The definition, one episode and one token at a time, in plain Python floats."""
    advantages = [[0.0] * len(row) for row in rewards]
    for b, row in enumerate(mask):
        actions = [t for t, is_action in enumerate(row) if is_action]
        for k, t in enumerate(actions):
            total = 0.0
            for j in range(k, len(actions)):
                next_value = values[b][actions[j + 1]] if j + 1 < len(actions) else 0.0
                delta = rewards[b][actions[j]] + gamma * next_value - values[b][actions[j]]
                total += (gamma * lam) ** (j - k) * delta
            advantages[b][t] = total
    return advantages


def test_gae_of_three_tokens_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.25, 0.75]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    # deltas: 0 + 0.5*0.25 - 0.5 = -0.375; 0 + 0.5*0.75 - 0.25 = 0.125; 1 - 0.75 = 0.25
    # A_2 = 0.25; A_1 = 0.125 + 0.25*0.25 = 0.1875; A_0 = -0.375 + 0.25*0.1875 = -0.328125
    assert advantages.tolist() == [[-0.328125, 0.1875, 0.25]]
    assert returns.tolist() == [[0.171875, 0.4375, 1.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.7), (0.99, 0.0)])
def test_gae_equals_the_slow_loop(gamma, lam):
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    values = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    mask = torch.rand(7, 11, generator=generator) < 0.7
    mask[0] = False  # an episode without a single action
    fast, returns = gae(rewards, values, mask, gamma, lam)
    slow = slow_gae(rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam)
    assert torch.allclose(fast, torch.tensor(slow, dtype=torch.float64), atol=1e-12)
    assert torch.equal(returns[mask], (fast + values)[mask])
    assert not returns[~mask].any()


def test_inserting_tokens_of_the_environment_changes_no_advantage():
    generator = torch.Generator().manual_seed(5)
    rewards, values = torch.randn(2, 3, 4, generator=generator)
    mask = torch.ones(3, 4, dtype=torch.bool)
    wide = [0, 2, 3, 6]  # where the four tokens stand once others are put between them
    wide_rewards = torch.full((3, 8), 99.0)
    wide_values = torch.full((3, 8), -99.0)
    wide_mask = torch.zeros(3, 8, dtype=torch.bool)
    wide_rewards[:, wide], wide_values[:, wide], wide_mask[:, wide] = rewards, values, True
    plain = gae(rewards, values, mask, 0.9, 0.8)
    padded = gae(wide_rewards, wide_values, wide_mask, 0.9, 0.8)
    for expected, actual in zip(plain, padded, strict=True):
        assert torch.equal(actual[:, wide], expected)
        assert not actual[~wide_mask].any()


def test_returns_with_lambda_one_do_not_depend_on_the_critic():
    generator = torch.Generator().manual_seed(7)
    rewards, values = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.8
    _, returns = gae(rewards, values, mask, 0.9, 1.0)
    assert torch.allclose(returns, discounted_returns(rewards, mask, 0.9), atol=1e-12)


def test_batch_mean_advantages_sum_to_zero_over_action_tokens():
    returns = torch.tensor([[1.0, 1.0, 7.0], [0.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = batch_mean_advantages(returns, mask)
    assert torch.allclose(advantages[mask], torch.tensor([1 / 3, 1 / 3, -2 / 3]))
    assert not advantages[~mask].any()


def test_whitening_gives_unit_size_and_ignores_masked_tokens():
    advantages = torch.tensor([[3.0, -3.0, 1e6]])
    mask = torch.tensor([[True, True, False]])
    assert whiten(advantages, mask, centre=False, std_floor=0.2).tolist() == [[1.0, -1.0, 0.0]]
    shifted = torch.tensor([[4.0, -2.0, 1e6]])
    assert whiten(shifted, mask, centre=True, std_floor=0.2).tolist() == [[1.0, -1.0, 0.0]]


def test_whitening_does_not_blow_up_small_advantages_of_a_solved_task():
    advantages = torch.tensor([[0.01, -0.01]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    whitened = whiten(advantages, mask, centre=True, std_floor=0.2)
    assert torch.allclose(whitened, torch.tensor([[0.05, -0.05]]))


def test_explained_variance_of_perfect_constant_and_wrong_critics():
    returns = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full_like(returns, 0.7), returns, mask) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask))


def test_tensors_of_different_shape_are_refused():
    with pytest.raises(AssertionError, match="one \\(B, T\\) shape"):
        gae(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool), 1.0, 1.0)


def test_the_value_behind_a_cut_episode_stands_in_for_the_rest_of_it():
    rewards, values = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[0.5, 0.25]] * 2)
    mask = torch.ones(2, 2, dtype=torch.bool)
    cut, _ = gae(rewards, values, mask, 0.5, 0.5, final_values_B=torch.tensor([4.0, 0.0]))
    # A_1 = 1 + 0.5*4 - 0.25 = 2.75; A_0 = 0 + 0.5*0.25 - 0.5 + 0.25*2.75 = 0.3125
    assert cut[0].tolist() == [0.3125, 2.75]
    assert torch.equal(cut[1:], gae(rewards[1:], values[1:], mask[1:], 0.5, 0.5)[0])


def test_turn_level_gae_of_two_turns_by_hand():
    #           turn 0         env    turn 1       padding
    rewards = [[0.0, 1.0, 99.0, -0.5, 2.0, 99.0]]
    values = [[0.5, 9.0, 9.0, 0.25, 9.0, 9.0]]  # only a turn's first value counts
    mask = torch.tensor([[True, True, False, True, True, False]])
    turns = torch.tensor([[0, 0, 1, 1, 1, 2]])
    advantages, returns = turn_gae(
        torch.tensor(rewards), torch.tensor(values), mask, turns, gamma=0.5, lam=0.5
    )
    # turn 1: 1.5 - 0.25 = 1.25; turn 0: 1 + 0.5*0.25 - 0.5 + 0.25*1.25 = 0.9375
    assert advantages.tolist() == [[0.9375, 0.9375, 0.0, 1.25, 1.25, 0.0]]
    assert returns.tolist() == [[1.4375, 1.4375, 0.0, 1.5, 1.5, 0.0]]


def test_turns_of_one_token_make_turn_level_gae_the_usual_one():
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 5, 4, generator=generator)
    final = torch.randn(5, generator=generator)
    mask = torch.ones(5, 4, dtype=torch.bool)
    turns = torch.arange(4).expand(5, 4)
    expected = gae(rewards, values, mask, 0.9, 0.8, final)
    actual = turn_gae(rewards, values, mask, turns, 0.9, 0.8, final)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_turn_level_gae_of_episodes_without_any_action_is_zero():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    advantages, returns = turn_gae(
        torch.ones(2, 3), torch.ones(2, 3), nothing, torch.zeros(2, 3, dtype=torch.long), 1.0, 1.0
    )
    assert not advantages.any() and not returns.any()


GROUPS = torch.tensor([0, 0, 0, 1, 1, 2])
#                       group 0: 1, 0, not trained on; group 1: 3, 3; group 2: alone
RETURNS = torch.tensor([[1.0, 0.5], [0.0, 0.0], [7.0, 7.0], [3.0, 9.0], [3.0, 3.0], [5.0, 5.0]])
MEMBERS = torch.tensor(
    [[True, True], [True, True], [False, False], [True, False], [True, True], [True, True]]
)


def test_leave_one_out_advantages_by_hand():
    advantages = rloo_advantages(RETURNS, MEMBERS, GROUPS)
    expected = [[1.0, 0.5], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert advantages.tolist() == expected


def test_group_advantages_by_hand():
    advantages = group_advantages(RETURNS, MEMBERS, GROUPS, eps=0.0)
    std = math.sqrt(0.5)  # of 1 and 0, divided by n - 1
    expected = torch.tensor([[0.5 / std, 0.0], [-0.5 / std, -0.5 / std], [0.0, 0.0]])
    torch.testing.assert_close(advantages[:3], expected)
    assert group_advantages(RETURNS, MEMBERS, GROUPS)[3:].tolist() == [[0.0, 0.0]] * 3


def test_a_group_with_hardly_any_spread_is_divided_by_the_floor():
    returns = torch.tensor([[1.01], [0.99], [1.0], [0.0]])
    mask, groups = torch.ones(4, 1, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    advantages = group_advantages(returns, mask, groups, eps=0.0, std_floor=0.2)
    half = math.sqrt(0.5)  # 0.5 by the spread of 1 and 0, which is above the floor
    torch.testing.assert_close(advantages, torch.tensor([[0.05], [-0.05], [half], [-half]]))


def test_leave_one_out_baselines_do_not_depend_on_the_response_itself():
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(8, 1, generator=generator)
    mask, groups = torch.ones(8, 1, dtype=torch.bool), torch.arange(8) // 4
    changed = returns.clone()
    changed[2] += 5
    difference = rloo_advantages(changed, mask, groups) - rloo_advantages(returns, mask, groups)
    assert difference[2].item() == pytest.approx(5.0)
    torch.testing.assert_close(difference[[0, 1, 3]], torch.full((3, 1), -5 / 3))
    assert not difference[4:].any()


def test_values_that_are_off_by_a_constant_are_no_baseline_whatever_they_explain():
    returns = torch.tensor([[4.0, 5.0, 6.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    for off, is_nearer in ((0.0, True), (0.5, True), (1.0, False), (-5.0, False)):
        values = returns + off
        assert explained_variance(values, returns, mask) == pytest.approx(1.0)
        assert is_nearer_than_mean(values, returns, mask) == is_nearer
    assert not is_nearer_than_mean(torch.full_like(returns, 5.0), returns, mask)
    assert not is_nearer_than_mean(returns, torch.ones_like(returns), mask)
    assert not is_nearer_than_mean(returns, returns, torch.zeros_like(mask))
