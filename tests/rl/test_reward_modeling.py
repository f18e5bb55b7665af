"""Bradley-Terry training on tiny models: what it computes, that it learns, resumes and exports."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.metrics import is_wall_clock
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig
from instructrec.policies.critic import make_critic
from instructrec.policies.scorer import load_scorer
from instructrec.rewards import make_reward
from instructrec.rl.fitting import Surroundings
from instructrec.rl.reward_config import FitConfig, PreferenceConfig
from instructrec.rl.reward_modeling import (
    PairScores,
    Preference,
    encode_preferences,
    score_pairs,
    train_reward_model,
)

TINY = PolicyConfig(model="tiny", dtype="float32", device="cpu")
FAST = FitConfig(max_steps=40, batch_size=8, learning_rate=3e-3, warmup_steps=0)
PLAIN = PreferenceConfig()
PAIRS = [Preference(f"name {letter}", "yes " + letter, "no " + letter) for letter in "abcdefgh"]


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def train(scorer, config=FAST, preference=PLAIN, validation=(), **around):
    log = []
    pairs = encode_preferences(scorer, PAIRS, config.max_length)
    held_out = encode_preferences(scorer, validation, config.max_length)
    result = train_reward_model(
        scorer,
        pairs,
        held_out,
        config,
        preference,
        seed=0,
        around=Surroundings(on_step=log.append, **around),
    )
    return result, log, pairs


def unclocked(log):
    return [{k: v for k, v in row.items() if not is_wall_clock(k)} for row in log]


def test_it_learns_which_response_is_preferred():
    scorer = load_scorer(TINY, head="score", seed=0)
    result, log, pairs = train(scorer, validation=[Preference("name z", "yes z", "no z")])
    assert score_pairs(scorer, pairs, 4).right.tolist() == [1.0] * 8
    assert log[-1]["rm/loss"] < 0.1 < 0.5 < log[0]["rm/loss"]
    assert log[-1]["rm/accuracy"] == 1.0 and log[-1]["rm/margin"] > 1
    assert (result.steps, result.best_step, result.stopped) == (40, 40, "finished")


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_the_first_loss_is_the_formula(micro_batch_size):
    scorer = load_scorer(TINY, head="score", seed=0)
    pairs = [dataclasses.replace(p, margin=0.5 * i) for i, p in enumerate(PAIRS)]
    encoded = encode_preferences(scorer, pairs, None)
    scores = score_pairs(scorer, encoded, 3)
    margins = 0.1 * np.array([pair.margin for pair in pairs])
    expected = np.mean(np.log1p(np.exp(-(scores.chosen - scores.rejected - margins))))
    expected += 0.3 * np.mean((scores.chosen + scores.rejected) ** 2)
    log = []
    train_reward_model(
        scorer,
        encoded,
        [],
        dataclasses.replace(FAST, max_steps=1, micro_batch_size=micro_batch_size),
        PreferenceConfig(margins=True, margin_scale=0.1, center_coef=0.3),
        seed=0,
        around=Surroundings(on_step=log.append),
    )
    assert log[0]["rm/loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("how", ["lora", *slow("full", "last_layers")])
def test_the_exported_folder_scores_like_the_trainer(tmp_path, how):
    config = dataclasses.replace(
        TINY, train=how, num_layers=1, lora=LoraSettings(r=4), system_prompt="Be brief."
    )
    scorer = load_scorer(config, head="score", seed=0)
    _, _, pairs = train(scorer, dataclasses.replace(FAST, max_steps=8, learning_rate=1e-2))
    scores = score_pairs(scorer, pairs, 3)
    assert np.ptp(scores.chosen - scores.rejected) > 1e-3
    scorer.save(tmp_path / "rm")
    reward = make_reward("learned", path=str(tmp_path / "rm"), device="cpu", batch_size=5)
    given = reward(
        [p.prompt for p in PAIRS] * 2, [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS]
    )
    assert given == pytest.approx([*scores.chosen, *scores.rejected], abs=1e-5)
    assert not (tmp_path / "rm" / "adapter_config.json").exists()


@pytest.mark.parametrize("how", ["last_layers", *slow("full", "lora")])
def test_what_is_not_chosen_stays_and_the_score_layer_always_trains(how):
    config = dataclasses.replace(TINY, train=how, num_layers=1, lora=LoraSettings(r=4))
    scorer = load_scorer(config, head="score", seed=0)
    before = {name: p.detach().clone() for name, p in scorer.model.named_parameters()}
    train(scorer, dataclasses.replace(FAST, max_steps=3))
    changed = {n for n, p in scorer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any("score" in name for name in changed)
    assert any("layers.1" in name for name in changed)
    if how == "last_layers":
        assert not any("layers.0" in name or "embed" in name for name in changed)
    if how == "lora":
        assert all("lora_" in name or "modules_to_save" in name for name in changed)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT without any head, whose texts are pairs with token types."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "name", "yes", "no", *"abcdefgh"]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["last_layers", *slow("full", "lora")])
def test_an_encoder_learns_too_and_scores_alike_after_export(tmp_path, bert, how):
    config = dataclasses.replace(
        TINY, model=str(bert), train=how, num_layers=1, lora=LoraSettings(r=8)
    )
    scorer = load_scorer(config, head="score", seed=0)
    _, log, pairs = train(scorer, dataclasses.replace(FAST, max_steps=40, learning_rate=1e-2))
    assert log[-1]["rm/loss"] < 0.3
    scores = score_pairs(scorer, pairs, 3)
    scorer.save(tmp_path / "rm")
    reward = make_reward("learned", path=str(tmp_path / "rm"), device="cpu")
    chosen = reward([p.prompt for p in PAIRS], [p.chosen for p in PAIRS])
    assert chosen == pytest.approx(list(scores.chosen), abs=1e-5)


def test_a_reward_model_is_trained_on_with_its_own_score_layer(tmp_path):
    scorer = load_scorer(TINY, head="score", seed=0)
    _, _, pairs = train(scorer, dataclasses.replace(FAST, max_steps=4))
    scores = score_pairs(scorer, pairs, 4)
    scorer.save(tmp_path / "reward_model")
    again = load_scorer(dataclasses.replace(TINY, model=str(tmp_path)), head="score", seed=5)
    found = score_pairs(again, encode_preferences(again, PAIRS, None), 4)
    assert found.chosen == pytest.approx(scores.chosen, abs=1e-5)


def test_the_critic_starts_from_it(tmp_path):
    """Its value of the last token is the reward model's score."""
    scorer = load_scorer(TINY, head="score", seed=0)
    _, _, pairs = train(scorer, dataclasses.replace(FAST, max_steps=4))
    scores = score_pairs(scorer, pairs, 4)
    scorer.save(tmp_path / "run" / "reward_model")
    policy = load_policy(TINY, seed=0)
    for source in (tmp_path / "run", tmp_path / "run" / "reward_model"):
        critic = make_critic(policy, "separate", detach=True, source=str(source))
        ids = torch.tensor([pairs[0].chosen["input_ids"]])
        last = torch.tensor([ids.shape[1] - 1])
        with torch.no_grad():
            value = critic(torch.empty(1, 64), ids, torch.tensor([0]), last)
        assert value.item() == pytest.approx(scores.chosen[0], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_resumed_fit_ends_like_one_that_was_not_interrupted(tmp_path, how):
    config = dataclasses.replace(TINY, train=how, lora=LoraSettings(r=4, dropout=0.1))
    settings = FitConfig(max_steps=10, batch_size=4, learning_rate=1e-3, eval_every=3, save_every=4)
    held_out = [Preference("name z", "yes z", "no z"), Preference("name y", "no y", "yes y")]
    whole = load_scorer(config, head="score", seed=0)
    expected, full_log, _ = train(whole, settings, validation=held_out)
    calls = iter(range(100))
    first = load_scorer(config, head="score", seed=0)
    stopped, head_log, _ = train(
        first,
        settings,
        validation=held_out,
        checkpoint_dir=tmp_path,
        should_stop=lambda: next(calls) == 5,
    )
    assert (stopped.stopped, stopped.steps) == ("interrupted", 6)
    second = load_scorer(config, head="score", seed=0)
    result, tail_log, _ = train(
        second, settings, validation=held_out, resume_from=tmp_path / "update-000006"
    )
    assert result == expected
    assert unclocked(head_log + tail_log) == unclocked(full_log)
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    settings = dataclasses.replace(FAST, max_steps=4, save_every=2, keep_checkpoints=2)
    train(load_scorer(TINY, head="score", seed=0), settings, checkpoint_dir=tmp_path)
    other = dataclasses.replace(settings, learning_rate=1e-4)
    with pytest.raises(CheckpointError, match=r"fit\.learning_rate"):
        train(
            load_scorer(TINY, head="score", seed=0), other, resume_from=tmp_path / "update-000002"
        )


def test_it_stops_early_and_keeps_the_best_weights():
    contrary = [Preference(p.prompt, p.rejected, p.chosen) for p in PAIRS]
    scorer = load_scorer(TINY, head="score", seed=0)
    settings = dataclasses.replace(FAST, eval_every=2, early_stopping_patience=2)
    result, log, _ = train(scorer, settings, validation=contrary)
    losses = [step["rm/val_loss"] for step in log if "rm/val_loss" in step]
    assert result.stopped == "early_stopping" and result.best_score == min(losses)
    assert result.best_step == 2 * losses.index(min(losses))
    again = score_pairs(scorer, encode_preferences(scorer, contrary, None), 4)
    assert again.loss() == pytest.approx(min(losses), abs=1e-6)


class AttentionSeen(TorchFunctionMode):
    """Notes in which precision attention is computed."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.dtypes.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
        return func(*args, **(kwargs or {}))


def test_in_bfloat16_on_a_cpu_attention_stays_in_float32():
    scorer = load_scorer(dataclasses.replace(TINY, dtype="bfloat16"), head="score", seed=0)
    with AttentionSeen() as seen:
        train(scorer, dataclasses.replace(FAST, max_steps=1))
    with AttentionSeen() as measured:
        score_pairs(scorer, encode_preferences(scorer, PAIRS[:2], None), 4)
    assert set(seen.dtypes) == set(measured.dtypes) == {(torch.float32, False)}


def test_a_tie_is_half_right_and_the_loss_is_that_of_the_difference():
    scores = PairScores([1.0, 0.0, 2.0], [0.0, 0.0, 3.0])
    assert scores.right.tolist() == [1.0, 0.5, 0.0]
    expected = (math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.exp(1))) / 3
    assert scores.loss() == pytest.approx(expected)


def test_long_texts_lose_their_beginning_and_pairs_that_become_equal_are_refused():
    scorer = load_scorer(TINY, head="score", seed=0)
    long = Preference("a long instruction " * 4, "yes", "no")
    (pair,) = encode_preferences(scorer, [long], 16)
    assert pair.cut == 2 and len(pair.chosen["input_ids"]) == 16
    with pytest.raises(DataError, match="the same 8 tokens"):
        encode_preferences(scorer, [Preference("q", "one and the same", "oN and the same")], 8)
    with pytest.raises(ConfigError, match="reads 512"):
        encode_preferences(scorer, PAIRS, 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, r"fit\.max_steps = 0"),
        ({"learning_rate": 0.0}, r"fit\.learning_rate"),
        ({"micro_batch_size": 3}, "divisor"),
        ({"early_stopping_patience": 2}, "eval_every"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(FAST, **changes)
