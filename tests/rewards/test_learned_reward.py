"""The learned reward on tiny models with random weights: which token is read, padding, batching."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.rewards import make_reward, make_rewards
from instructrec.rewards.learned import record_normalisation

torch.set_num_threads(1)

WORDS = ["red", "green", "blue", "sky", "grass", "is", "the", "what", "?", "."]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "[CLS]", "[SEP]"]
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
PROMPTS = ["what is the sky ?", "is grass green ?", "what ?", "the sky is blue . is it ?"]
COMPLETIONS = ["blue", "the grass is green .", "", "red red red red red red red"]


def make_tokenizer(**settings) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pairs = "sep_token" in settings
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(t, VOCABULARY[t]) for t in ("[CLS]", "[SEP]")],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * pairs,
        **settings,
    )


def save_llama(
    folder: Path, *, labels: int = 1, pad: str | None = "<pad>", chat: bool = True
) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=None if pad is None else VOCABULARY[pad],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
        initializer_range=0.5,  # scores of small weights would hardly differ
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>", pad_token=pad)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def logit_of(folder: Path, text: str, position: int) -> float:
    """The logit at one position, computed from the hidden states without any padding."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([[VOCABULARY.get(word, 0) for word in text.split()]])
    with torch.no_grad():
        return model.score(model.model(ids).last_hidden_state)[0, position, 0].item()


def test_the_score_is_the_logit_at_the_end_token_of_the_chat(llama):
    expected = logit_of(llama, "<s> what is the sky ? </s> <s> blue </s>", -1)
    reward = make_reward("learned", path=str(llama), device="cpu")
    assert reward([PROMPTS[0]], ["blue"]) == pytest.approx([expected], abs=1e-5)


def test_where_padding_and_end_are_one_token_the_token_before_is_read(tmp_path):
    folder = save_llama(tmp_path, pad="</s>")
    expected = logit_of(folder, "<s> what is the sky ? </s> <s> blue", -1)
    reward = make_reward("learned", path=str(folder), device="cpu")
    scores = reward(PROMPTS[:2], ["blue", COMPLETIONS[1]])  # padded to the longer one
    assert scores[0] == pytest.approx(expected, abs=1e-5)


def test_without_a_chat_template_the_end_token_is_put_after_the_response(tmp_path):
    folder = save_llama(tmp_path, chat=False)
    reward = make_reward("learned", path=str(folder), device="cpu")
    expected = logit_of(folder, "the sky is blue </s>", -1)
    assert reward(["the sky "], ["is blue"]) == pytest.approx([expected], abs=1e-5)
    assert reward(["the sky "], ["is blue </s>"]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("pad", ["<pad>", "</s>", None])
@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_a_padded_batch_scores_like_its_samples_in_any_order(tmp_path, pad, batch_size):
    folder = save_llama(tmp_path, pad=pad)
    rng = random.Random(0)
    completions = [" ".join(rng.choices(WORDS, k=rng.randrange(12))) for _ in range(13)]
    prompts = [rng.choice(PROMPTS) for _ in completions]
    reward = make_reward("learned", path=str(folder), batch_size=batch_size, device="cpu")
    batch = reward(prompts, completions)
    singles = [reward([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert batch == pytest.approx(singles, abs=1e-5)
    assert reward(prompts[::-1], completions[::-1]) == pytest.approx(batch[::-1], abs=1e-5)
    assert max(batch) - min(batch) > 0.01  # scores that never differ would prove nothing


def test_strings_and_messages_score_alike(llama):
    reward = make_reward("learned", path=str(llama), device="cpu")
    messages = reward(
        [[{"role": "user", "content": p}] for p in PROMPTS],
        [[{"role": "assistant", "content": c}] for c in COMPLETIONS],
    )
    assert reward(PROMPTS, COMPLETIONS) == messages


def test_it_is_one_part_of_a_weighted_sum_without_a_range(llama):
    combined = make_rewards(
        {
            "exact_match": 1,
            "model": {"use": "learned", "weight": 0.1, "options": {"path": str(llama)}},
        }
    )
    batch = combined.score(PROMPTS, COMPLETIONS, {"reference": ["blue"] * 4})
    assert batch.valid.all()
    assert batch.total == pytest.approx(batch.parts["exact_match"] + 0.1 * batch.parts["model"])
    assert combined.spec["model"]["options"] == {"path": str(llama)}


def test_long_texts_lose_their_beginning_and_are_counted(llama):
    reward = make_reward("learned", path=str(llama), max_length=6, device="cpu")
    long, cut = "red " * 30 + "is the sky", "<s> is the sky </s>"
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than 6 tokens and were cut"):
        scores = reward(["what ?", "?"], [long, "."])
    assert reward.function.truncated == 1
    # The first token stays; of the rest, the last five.
    kept = "<s> " + " ".join(f"red {cut.removeprefix('<s> ')}".split()[-5:])
    assert scores[0] == pytest.approx(logit_of(llama, kept, -1), abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns once and goes on counting
        reward(["what ?"], [long])
    assert reward.function.truncated == 2


def test_the_samples_whose_text_was_cut_are_known_by_component(llama):
    learned = {"use": "learned", "options": {"path": str(llama), "max_length": 6, "device": "cpu"}}
    parts = {"model": learned, "whole": {"use": "weighted", "options": {"parts": {"in": learned}}}}
    with pytest.warns(UserWarning, match=r"1 of 2 texts"):
        batch = make_rewards(parts).score(["what ?", "?"], ["red " * 30, "."], {})
    assert batch.flags == {name: {"truncated": [True, False]} for name in ("model", "whole.in")}


@pytest.mark.parametrize("options", [{}, {"normalise": True}, {"mean": 1.0, "std": 2.0}])
@pytest.mark.parametrize("more", [{}, {"isolation": "worker"}, {"cache": "scores.db"}])
def test_scores_far_from_those_that_were_recorded_are_flagged(tmp_path, monkeypatch, options, more):
    monkeypatch.chdir(tmp_path)
    folder = save_llama(tmp_path / "model")
    raw = make_reward("learned", path=str(folder), device="cpu")(PROMPTS, COMPLETIONS)
    order = sorted(range(4), key=lambda i: raw[i])
    near, far = raw[order[0]], raw[order[-1]]  # known: scores around the lowest of the four
    half = (far - near) / 8  # the highest is 8 of these away
    known = {"mean": near, "std": half} if "mean" in options else {}
    record_normalisation(folder, [near - half, near + half])
    spec = {"use": "learned", "options": {"path": str(folder), "device": "cpu"}, **more}
    spec["options"] |= options | known
    rewards = make_rewards({"model": spec})
    for _ in range(2):  # the second time, a cache knows all of them
        flags = rewards.score(PROMPTS, COMPLETIONS, {}).flags["model"]["ood"]
        assert flags == [score - near > 3 * half for score in raw]
        assert flags[order[-1]] and not flags[order[0]]
    rewards.close()


def test_without_recorded_scores_nothing_is_known_to_be_far_from_them(llama):
    rewards = make_rewards({"model": {"use": "learned", "options": {"path": str(llama)}}})
    assert rewards.score(PROMPTS, COMPLETIONS, {}).flags == {"model": {"truncated": [False] * 4}}


def test_an_encoder_reads_a_text_pair(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=2,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
        pad_token_id=VOCABULARY["<pad>"],
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(cls_token="[CLS]", sep_token="[SEP]", pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path)

    reward = make_reward("learned", path=str(tmp_path), label="good", device="cpu", max_length=20)
    encoded = tokenizer(PROMPTS[0], "blue", return_tensors="pt")
    assert encoded["token_type_ids"].max() == 1  # the pair is told apart
    with torch.no_grad():
        expected = model(**encoded).logits[0, 1].item()
    scores = reward(PROMPTS, COMPLETIONS)
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    assert scores == pytest.approx(
        [reward([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)], abs=1e-5
    )
    with pytest.warns(UserWarning, match=r"longer than 20 tokens"):
        assert len(reward(["the " * 40], ["blue"])) == 1


def test_a_model_with_several_labels_needs_one_named(tmp_path):
    folder = str(save_llama(tmp_path, labels=3))
    by_name = make_reward("learned", path=folder, label="LABEL_2", device="cpu")(
        PROMPTS, COMPLETIONS
    )
    assert (
        make_reward("learned", path=folder, label=2, device="cpu")(PROMPTS, COMPLETIONS) == by_name
    )
    for label in (None, "LABEL_5", 3, -1):
        with pytest.raises(ConfigError, match=r"has 3 labels: LABEL_0, LABEL_1, LABEL_2"):
            make_reward("learned", path=folder, label=label, device="cpu")(PROMPTS, COMPLETIONS)


def test_a_model_without_a_trained_head_is_refused(tmp_path, llama):
    config = LlamaConfig.from_pretrained(llama)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match=r"lacks the trained weights score.weight"):
        make_rewards({"learned": {"options": {"path": str(tmp_path)}}}).score(["p"], ["c"], {})


def test_it_pickles_without_the_model_and_loads_again(llama):
    reward = make_reward("learned", path=str(llama), device="cpu")
    before = pickle.dumps(reward)
    scores = reward(PROMPTS, COMPLETIONS)
    after = pickle.dumps(reward)
    assert len(after) == len(before) < 1000
    assert pickle.loads(after)(PROMPTS, COMPLETIONS) == scores
    assert len(pickle.dumps(reward.function)) < 1000
    assert pickle.loads(pickle.dumps(reward.function))(PROMPTS, COMPLETIONS) == scores


def test_wrong_paths_and_numbers_are_refused_at_once(tmp_path, llama):
    for path in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c", ""):
        with pytest.raises(ConfigError, match=r"no folder"):
            make_reward("learned", path=path)
    with pytest.raises(ConfigError, match=r"no config.json"):
        make_reward("learned", path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"batch_size = 0: expected at least 1"):
        make_reward("learned", path=str(llama), batch_size=0)
    with pytest.raises(ConfigError, match=r"option batch_size = 2.5 \(float\); expected int"):
        make_reward("learned", path=str(llama), batch_size=2.5)
    with pytest.raises(ConfigError, match=r"max_length = 100, but the model reads 64 tokens"):
        make_reward("learned", path=str(llama), max_length=100, device="cpu")(["p"], ["c"])


def test_a_hub_id_that_cannot_be_had_is_a_policy_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PolicyError, match=r"'nobody/no-such-model' cannot be loaded as a seq"):
        make_reward("learned", path="nobody/no-such-model", device="cpu")(["p"], ["c"])


def test_scores_are_normalised_by_numbers_recorded_beside_the_model(tmp_path):
    folder = save_llama(tmp_path)
    raw = make_reward("learned", path=str(folder), device="cpu")(PROMPTS, COMPLETIONS)
    with pytest.raises(ConfigError, match=r"needs .*reward_normalisation.json.*FileNotFoundError"):
        make_reward("learned", path=str(folder), normalise=True)
    mean, std = record_normalisation(folder, raw)
    assert (mean, std) == pytest.approx((np.mean(raw), np.std(raw)))
    reward = make_reward("learned", path=str(folder), device="cpu", normalise=True)
    scores = reward(PROMPTS, COMPLETIONS)
    assert scores == pytest.approx([(score - mean) / std for score in raw])
    assert (np.mean(scores), np.std(scores)) == pytest.approx((0, 1), abs=1e-5)
    given = make_reward("learned", path=str(folder), device="cpu", mean=1.0, std=2)
    assert given(PROMPTS, COMPLETIONS) == pytest.approx([(score - 1) / 2 for score in raw])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": 1.0}, r"mean and std belong together"),
        ({"mean": 1.0, "std": 0.0}, r"std above 0"),
        ({"mean": float("nan"), "std": 1.0}, r"finite numbers"),
        ({"mean": 1.0, "std": 1.0, "normalise": True}, r"and not both"),
    ],
)
def test_a_normalisation_that_means_nothing_is_refused(llama, options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward("learned", path=str(llama), **options)


def test_scores_that_cannot_normalise_are_refused(tmp_path):
    for scores in ([], [1.0], [2.0, 2.0], [1.0, float("inf")]):
        with pytest.raises(DataError, match=r"cannot normalise a reward"):
            record_normalisation(tmp_path, scores)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "reward_normalisation.json").write_text('{"mean": 1}')
    with pytest.raises(ConfigError, match=r"KeyError: 'std'"):
        make_reward("learned", path=str(tmp_path), normalise=True)
