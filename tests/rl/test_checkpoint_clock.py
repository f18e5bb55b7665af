"""Checkpoints by the clock: who sets nothing loses minutes of work, not all of it."""

from __future__ import annotations

import dataclasses

from instructrec.rl.checkpoint import update_of
from instructrec.rl.checkpoint_clock import END_SECONDS, MOST_SHARE, CheckpointClock
from instructrec.rl.checkpoint_keeping import list_checkpoints
from instructrec.rl.config import DPOConfig, PPOConfig, SFTConfig
from instructrec.rl.fitting import Surroundings
from instructrec.rl.reward_config import FitConfig
from instructrec.rl.sft import Demonstration, run_sft


class Watch:
    """A clock that is set by hand."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


def test_a_checkpoint_is_due_after_its_time_and_again_after_as_much():
    watch = Watch()
    clock = CheckpointClock(10, watch)
    watch.seconds += 599
    assert not clock.is_due()
    watch.seconds += 1
    assert clock.is_due()
    with clock.saving():
        watch.seconds += 2
    watch.seconds += 599
    assert not clock.is_due()
    watch.seconds += 1
    assert clock.is_due()


def test_slow_checkpoints_take_no_more_than_their_share_of_the_time():
    watch = Watch()
    clock = CheckpointClock(1, watch)
    with clock.saving():
        watch.seconds += 300
    watch.seconds += 300 / MOST_SHARE - 1
    assert not clock.is_due() and not clock.is_due(ends=True)
    watch.seconds += 1
    assert clock.is_due()


def test_the_end_is_kept_sooner_and_zero_is_never():
    watch = Watch()
    clock, never = CheckpointClock(10, watch), CheckpointClock(0, watch)
    watch.seconds += END_SECONDS
    assert clock.is_due(ends=True) and not clock.is_due()
    watch.seconds += 1e9
    assert not never.is_due() and not never.is_due(ends=True)


def test_every_algorithm_goes_by_the_clock_unless_told_otherwise():
    assert {c.save_minutes for c in (PPOConfig(), SFTConfig(), DPOConfig(), FitConfig())} == {10}


def test_a_run_writes_checkpoints_by_the_clock_and_ends_as_without(toy, tmp_path):
    hashes = []
    for minutes, first in ((1e-9, 1), (0.0, 4)):
        config = dataclasses.replace(toy.fast, save_minutes=minutes, keep_checkpoints=9)
        folder = tmp_path / str(first)
        policy, _, _ = toy.train(config, checkpoint_dir=folder)
        found = [update_of(path) for path in list_checkpoints(folder)]
        assert (found[0], found[-1]) == (first, 4)
        hashes.append(policy.weights_hash())
    assert hashes[0] == hashes[1]


def test_training_on_given_answers_does_too(toy, tmp_path):
    rows = [Demonstration(f"name {letter}", letter) for letter in "abcd"]
    for minutes, expected in ((1e-9, 1), (0.0, None)):
        config = SFTConfig(
            max_steps=3, batch_size=2, save_every=0, save_minutes=minutes, keep_checkpoints=9
        )
        folder = tmp_path / str(minutes)
        around = Surroundings(on_step=lambda _: None, checkpoint_dir=folder)
        run_sft(toy.policy(), rows, [], config, seed=0, around=around)
        found = [update_of(path) for path in list_checkpoints(folder)]
        assert next(iter(found), None) == expected
