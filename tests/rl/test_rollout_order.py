from __future__ import annotations

import pytest

from instructrec.errors import DataError
from instructrec.rl.rollout import instruction_order


def test_every_epoch_is_a_permutation_of_all_instructions():
    order = instruction_order(10, seed=1, start=0, stop=30)
    epochs = [order[:10], order[10:20], order[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_continued_order_is_the_rest_of_the_whole_one():
    whole = instruction_order(7, seed=3, start=0, stop=40)
    for cut in (0, 1, 7, 12, 39):
        assert instruction_order(7, seed=3, start=cut, stop=40) == whole[cut:]
    assert instruction_order(7, seed=3, start=0, stop=100)[:40] == whole


def test_seeds_differ():
    assert instruction_order(50, 1, 0, 50) != instruction_order(50, 2, 0, 50)


def test_an_empty_split_is_an_error():
    with pytest.raises(DataError, match="empty"):
        instruction_order(0, seed=0, start=0, stop=1)
