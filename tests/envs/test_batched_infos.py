"""Infos of several copies become one as Gymnasium's vector environments do it."""

import numpy as np
from gymnasium.vector import VectorEnv
from hypothesis import given
from hypothesis import strategies as st

from instructrec.envs.infos import InfoBatch

NAMES = st.sampled_from(["turn", "score", "status", "flag", "final_obs"])
VALUES = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=True),
    st.text(max_size=3),
    st.none(),
    st.just(np.float64(2.5)),
    st.just((1, 2)),
)


@st.composite
def told_by_copies(draw):
    """Infos of 4 copies in which an entry is of one kind, or nested, in all of them."""
    kinds = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    parts = draw(st.lists(st.sampled_from("abc"), unique=True))
    infos = []
    for copy in draw(st.lists(st.integers(0, 3), unique=True)):
        info = {name: value for name, value in kinds.items() if draw(st.booleans())}
        info["parts"] = {name: float(copy) for name in parts if draw(st.booleans())}
        infos.append((copy, info))
    return infos


@given(told_by_copies())
def test_the_outcome_is_gymnasiums(infos):
    theirs_env, collected, theirs = VectorEnv(), InfoBatch(4), {}
    theirs_env.num_envs = 4
    for copy, info in infos:
        collected.add(copy, info)
        theirs = theirs_env._add_info(theirs, info, copy)
    ours = collected.batched()
    assert list(ours) == list(theirs)
    np.testing.assert_equal(ours, theirs)
    for name, values in theirs.items():
        if isinstance(values, np.ndarray):
            assert ours[name].dtype == values.dtype


def test_arrays_keep_their_shape():
    collected = InfoBatch(3)
    collected.add(1, {"ids": np.array([1, 2])})
    info = collected.batched()
    assert info["ids"].tolist() == [[0, 0], [1, 2], [0, 0]]
    assert info["_ids"].tolist() == [False, True, False]
