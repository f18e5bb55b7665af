"""What processes share: gradients, the start, and proof that their weights stay equal."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from instructrec import processes
from instructrec.errors import ConfigError, DataError, NumericsError, PolicyError, RewardError
from instructrec.rewards.combine import make_rewards
from instructrec.rl.config import PPOConfig
from instructrec.rl.sharing import (
    check_same_weights,
    check_shares,
    check_stateless,
    own_rows,
    share_start,
    sum_gradients,
)


def test_a_gradient_that_only_some_have_counts_and_one_that_none_has_stays_away(
    in_two_processes,
):
    def work():
        both, one, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        both.grad = torch.full((2,), 1.0 + processes.rank())
        if processes.rank() == 1:
            one.grad = torch.full((2,), 5.0)
        sum_gradients([both, one, none])
        return both.grad.tolist(), one.grad.tolist(), none.grad

    assert in_two_processes(work) == [([3.0, 3.0], [5.0, 5.0], None)] * 2


def test_all_start_from_the_trained_weights_of_the_main_process(toy, in_two_processes):
    def work():
        policy = toy.policy(train="last_layers", num_layers=1)
        head = nn.Linear(2, 2)
        nn.init.constant_(head.weight, processes.rank())
        with torch.no_grad():
            next(p for p in policy.model.parameters() if p.requires_grad).add_(processes.rank())
        share_start(policy, [policy.model, head])
        check_same_weights([policy.model, head])
        return policy.weights_hash(), head.weight.sum().item(), list(own_rows(8))

    main, other = in_two_processes(work)
    assert main[0] == other[0] and main[1] == other[1] == 0
    assert main[2] + other[2] == list(range(8))


def test_models_with_other_frozen_weights_are_refused(toy, in_two_processes):
    def work():
        policy = toy.policy(seed=processes.rank(), train="last_layers", num_layers=1)
        share_start(policy, [policy.model])

    main, _ = in_two_processes(work)
    assert isinstance(main, PolicyError) and "loaded different models" in str(main)


def test_weights_that_came_to_differ_stop_the_run(in_two_processes):
    def work():
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, 1 + 1e-7 * processes.rank())
        nn.init.zeros_(module.bias)
        check_same_weights([module])

    main, _ = in_two_processes(work)
    assert isinstance(main, NumericsError) and "weights of the processes differ" in str(main)


def test_processes_that_have_read_different_data_are_refused(toy, in_two_processes, tmp_path):
    def work():
        file = tmp_path / f"{processes.rank()}.jsonl"
        size = 64 - processes.rank()
        file.write_text("".join(f'{{"prompt": "{i}", "reference": "a"}}\n' for i in range(size)))
        type(toy)(str(file)).train()

    main, _ = in_two_processes(work)
    assert isinstance(main, DataError) and "different instructions in the all split" in str(main)


def test_a_rollout_that_cannot_be_shared_equally_is_refused(in_two_processes):
    odd = PPOConfig(episodes_per_update=12, num_generations=4, num_mini_batches=1, advantage="rloo")
    check_shares(odd)
    main, _ = in_two_processes(lambda: check_shares(odd))
    assert isinstance(main, ConfigError) and "a multiple of 2 × ppo.num_generations = 8" in str(
        main
    )


class Counting:
    """A reward that remembers how often it was asked."""

    __name__ = "counting"

    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_rewards_that_keep_a_state_of_their_own_are_refused(in_two_processes):
    reward = make_rewards({"counting": Counting()})
    check_stateless(reward)
    main, _ = in_two_processes(lambda: check_stateless(reward))
    assert "'counting' keeps a state" in str(main)
    running = make_rewards({"exact_match": {"normalise": "running"}})
    assert in_two_processes(lambda: check_stateless(running)) == [None, None]


def test_a_reward_that_fails_in_one_process_batch_after_batch_stops_all(toy, in_two_processes):
    def sometimes(completions, **columns):
        if processes.rank() == 1:
            raise ValueError("no score")
        return [0.0] * len(completions)

    limits = {"max_error_frac": 1.0, "max_error_batches": 2}
    config = dataclasses.replace(toy.fast, **limits)
    main, other = in_two_processes(lambda: toy.train(config, reward=sometimes))
    assert isinstance(main, RewardError) and "2 batches in a row" in str(main)
    assert isinstance(other, SystemExit) and other.code == RewardError.exit_code
