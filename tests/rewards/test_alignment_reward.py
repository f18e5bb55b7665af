"""The alignment reward on a tiny dual encoder: known answers, batches, ranking, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.config import PolicyConfig
from instructrec.policies.scorer import load_scorer
from instructrec.rewards import make_reward, make_rewards
from instructrec.rewards.alignment import MARKERS, AlignmentReward, AlignmentSettings

SETTINGS = AlignmentSettings(slope=3.0, intercept=-1.0, max_length=32, scale=10.0, bias=-2.0)
TINY = PolicyConfig(model="tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("dual") / "reward_model"
    load_scorer(TINY, head="none", seed=0, markers=MARKERS).save(place)
    SETTINGS.write(place)
    return place


def embedded(folder: Path, text: str, marker: str) -> torch.Tensor:
    """The state at the marker, computed alone and without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [*text.encode(), tokenizer.convert_tokens_to_ids(marker)]
    with torch.no_grad():
        state = model(torch.tensor([ids])).last_hidden_state[0, -1]
    return state / state.norm()


def test_the_score_is_the_calibrated_cosine(folder):
    cosine = embedded(folder, "say a", MARKERS[0]) @ embedded(folder, "aaa", MARKERS[1])
    expected = 1 / (1 + math.exp(-(3.0 * float(cosine) - 1.0)))
    for path in (folder, folder.parent):
        reward = make_reward("alignment", path=str(path), device="cpu")
        assert reward(["say a"], ["aaa"]) == pytest.approx([expected], abs=1e-5)


def test_a_batch_scores_like_its_samples_in_any_order(folder):
    prompts = ["say a", "say b", "say a", "a much longer instruction"]
    completions = ["aaa", "b", "ccc ccc", "xyz"]
    reward = make_reward("alignment", path=str(folder), device="cpu", batch_size=2)
    batch = reward(prompts, completions)
    singles = [reward([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert batch == pytest.approx(singles, abs=1e-6)
    assert reward(prompts[::-1], completions[::-1]) == pytest.approx(batch[::-1], abs=1e-6)
    assert len({round(score, 6) for score in batch}) == 4 and all(0 <= s <= 1 for s in batch)


def test_a_blank_response_scores_nothing_and_messages_score_like_text(folder):
    reward = make_reward("alignment", path=str(folder), device="cpu")
    assert reward(["say a", "say a"], ["", " \n"]) == [0.0, 0.0]
    messages = [{"role": "assistant", "content": "aaa"}]
    assert reward(["say a"], [messages]) == reward(["say a"], ["aaa"])


def test_it_ranks_candidates_and_gives_vectors_to_search_with(folder):
    reward = AlignmentReward(str(folder), device="cpu")
    candidates = ["aaa", "zz", "a b c"]
    scores = reward(["say a"] * 3, candidates)
    order = reward.rank("say a", candidates)
    assert [scores[i] for i in order] == sorted(scores, reverse=True)
    (asked,), found = reward.embed_instructions(["say a"]), reward.embed_outputs(candidates)
    cosines = [sum(x * y for x, y in zip(asked, row, strict=True)) for row in found]
    assert [SETTINGS.score(c) for c in cosines] == pytest.approx(scores)
    assert sum(x * x for x in asked) == pytest.approx(1.0, abs=1e-5)


def test_long_texts_are_cut_and_counted(folder):
    reward = AlignmentReward(str(folder), device="cpu")
    with pytest.warns(UserWarning, match="longer than 32 tokens"):
        long, _ = reward(["say a", "say a"], ["x" * 100, "aaa"])
    assert reward.last_truncated == [True, False]
    assert long == pytest.approx(reward(["say a"], ["x" * 31])[0], abs=1e-6)


def test_it_is_part_of_a_sum_and_travels_without_its_weights(folder):
    combined = make_rewards({"fit": {"use": "alignment", "options": {"path": str(folder)}}})
    assert 0 < combined.score(["say a"], ["aaa"], {}).total[0] < 1
    reward = AlignmentReward(str(folder), device="cpu")
    before = reward(["say a"], ["aaa"])
    sent = pickle.dumps(reward)
    assert len(sent) < 2000 and pickle.loads(sent)(["say a"], ["aaa"]) == before


def test_other_folders_are_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match="no folder"):
        AlignmentReward(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no alignment model.*train-reward"):
        AlignmentReward(str(tmp_path))
    newer = dataclasses.asdict(SETTINGS) | {"format_version": 2}
    (tmp_path / "alignment.json").write_text(json.dumps(newer))
    with pytest.raises(ConfigError, match="expected 1"):
        AlignmentReward(str(tmp_path))
    plain = tmp_path / "plain"
    load_scorer(TINY, head="none", seed=0).save(plain)
    SETTINGS.write(plain)
    with pytest.raises(PolicyError, match="lacks the special tokens"):
        AlignmentReward(str(plain), device="cpu")(["a"], ["b"])


def test_the_score_stays_in_range_for_any_slope():
    steep = dataclasses.replace(SETTINGS, slope=1e6)
    assert (steep.score(1.0), steep.score(-1.0)) == (1.0, pytest.approx(0.0))
