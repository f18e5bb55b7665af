"""classifier and embedding_similarity on tiny encoders with random weights."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from instructrec.errors import ConfigError, PolicyError
from instructrec.rewards import Status, make_reward, make_rewards
from instructrec.rewards.check import check_reward

torch.set_num_threads(1)

WORDS = ["red", "green", "blue", "sky", "grass", "is", "the", "what", "?", "."]
VOCABULARY = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
TEXTS = ["the sky is blue .", "grass", "what ? what ?", "red red red red red red red red red"]
HOSTILE = ["", " \n", "\ud800", "\x00", "🙂" * 500, "\u202esky", "blue " * 5000]


def save_tokenizer(folder: Path, *, special: bool = True) -> None:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(t, VOCABULARY[t]) for t in ("[CLS]", "[SEP]")],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)


def config(**settings) -> BertConfig:
    torch.manual_seed(0)
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,  # outputs of small weights would hardly differ
        **settings,
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    BertModel(config(), add_pooling_layer=False).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_classifier(folder: Path, *, special: bool = True, **settings) -> str:
    BertForSequenceClassification(config(**settings)).save_pretrained(folder)
    save_tokenizer(folder, special=special)
    return str(folder)


@pytest.fixture(scope="module")
def mood(tmp_path_factory) -> str:
    labels = {0: "bad", 1: "so so", 2: "good"}
    return save_classifier(tmp_path_factory.mktemp("mood"), id2label=labels, num_labels=3)


def ids(text: str) -> torch.Tensor:
    return torch.tensor([[VOCABULARY.get(w, 1) for w in f"[CLS] {text} [SEP]".split()]])


def embedding_by_hand(folder: str, text: str, pooling: str) -> torch.Tensor:
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = model(ids(text)).last_hidden_state[0]
    return states.mean(0) if pooling == "mean" else states[0]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("scale", ["shift", "clip"])
def test_similarity_is_the_mapped_cosine_of_the_pooled_states(encoder, pooling, scale):
    reward = make_reward(
        "embedding_similarity", path=encoder, pooling=pooling, scale=scale, device="cpu"
    )
    scores = reward(["p"] * 3, TEXTS[1:], reference=[TEXTS[0]] * 3)
    for text, score in zip(TEXTS[1:], scores, strict=True):
        one, other = (embedding_by_hand(encoder, t, pooling) for t in (text, TEXTS[0]))
        cosine = torch.cosine_similarity(one, other, dim=0).item()
        expected = (1 + cosine) / 2 if scale == "shift" else max(cosine, 0)
        assert score == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in scores}) == 3


def test_the_most_similar_answer_counts_and_blank_ones_do_not(encoder):
    reward = make_reward("embedding_similarity", path=encoder, device="cpu")
    same, several, blank, none, silent = reward(
        ["p"] * 5,
        [TEXTS[0], TEXTS[0], TEXTS[0], TEXTS[0], " "],
        reference=[TEXTS[0], [TEXTS[1], "", TEXTS[0]], [" "], None, TEXTS[0]],
    )
    assert same == pytest.approx(1, abs=1e-6) and several == pytest.approx(1, abs=1e-6)
    assert blank is None and none is None and silent == 0.0


def test_an_encoder_that_lacks_more_than_its_pooling_layer_is_refused(tmp_path, encoder):
    model = BertModel.from_pretrained(encoder, add_pooling_layer=False)
    weights = {k: v for k, v in model.state_dict().items() if "layer.1" not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    save_tokenizer(tmp_path)
    with pytest.raises(PolicyError, match=r"lacks the trained weights encoder.layer.1.*encoder"):
        make_reward("embedding_similarity", path=str(tmp_path), device="cpu")(
            ["p"], ["sky"], reference=["sky"]
        )


def probabilities(folder: str, text: str) -> torch.Tensor:
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(ids(text)).logits[0]


def test_the_probability_of_a_label_is_the_softmax_over_all(mood):
    expected = probabilities(mood, TEXTS[0]).softmax(-1)
    for label, i in (("good", 2), ("so so", 1), (0, 0)):
        for_it = make_reward("classifier", path=mood, label=label, device="cpu")
        against = make_reward("classifier", path=mood, label=label, sense="negative", device="cpu")
        assert for_it(["p"], [TEXTS[0]]) == pytest.approx([expected[i].item()], abs=1e-5)
        assert against(["p"], [TEXTS[0]]) == pytest.approx([1 - expected[i].item()], abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}],
)
def test_labels_that_do_not_exclude_each_other_are_read_by_the_sigmoid(tmp_path, settings):
    folder = save_classifier(tmp_path, **settings)
    reward = make_reward("classifier", path=folder, label=0, device="cpu")
    expected = probabilities(folder, TEXTS[0])[0].sigmoid().item()
    assert reward(["p"], [TEXTS[0]]) == pytest.approx([expected], abs=1e-5)


def test_with_the_prompt_it_reads_the_pair(mood):
    pair = make_reward("classifier", path=mood, label="good", with_prompt=True, device="cpu")
    alone = make_reward("classifier", path=mood, label="good", device="cpu")
    learned = make_reward("learned", path=mood, label="good", device="cpu")
    prompts = ["what is red ?", "what ?"]
    assert alone(prompts, [TEXTS[0]] * 2) == pytest.approx(alone(["p", "q"], [TEXTS[0]] * 2))
    logits = [learned(prompts, [TEXTS[0]] * 2)]
    for label in ("bad", "so so"):
        logits.append(
            make_reward("learned", path=mood, label=label, device="cpu")(prompts, [TEXTS[0]] * 2)
        )
    assert pair(prompts, [TEXTS[0]] * 2) == pytest.approx(
        torch.tensor(logits).softmax(0)[0].tolist(), abs=1e-5
    )


def test_a_model_of_scores_and_labels_that_do_not_exist_are_refused(tmp_path, mood):
    folder = save_classifier(tmp_path, num_labels=1, problem_type="regression")
    with pytest.raises(ConfigError, match=r"a score and no classes.*use the reward 'learned'"):
        make_reward("classifier", path=folder, device="cpu")(["p"], ["sky"])
    with pytest.raises(ConfigError, match=r"label = 'god'.*Did you mean 'good'"):
        make_reward("classifier", path=mood, label="god", device="cpu")(["p"], ["sky"])
    with pytest.raises(ConfigError, match=r"reward 'embedding_similarity': no folder './x'"):
        make_reward("embedding_similarity", path="./x")
    with pytest.raises(ConfigError, match=r"expected one of positive, negative"):
        make_reward("classifier", path=mood, sense="bad")


def test_a_response_without_tokens_fails_alone(tmp_path):
    folder = save_classifier(tmp_path, special=False, num_labels=2)
    rewards = make_rewards(
        {"classifier": {"options": {"path": folder, "label": 1, "device": "cpu"}}}
    )
    batch = rewards.score(["p"] * 3, ["sky", "", "blue"], {})
    assert batch.status["classifier"] == [Status.SCORED, Status.RAISED, Status.SCORED]
    assert batch.messages["classifier"][1] == "the response holds no tokens"


def make_both(encoder: str, mood: str, batch_size: int):
    embedding = make_reward(
        "embedding_similarity", path=encoder, batch_size=batch_size, device="cpu"
    )
    classifier = make_reward(
        "classifier", path=mood, label="good", batch_size=batch_size, device="cpu"
    )
    return embedding, classifier


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_a_batch_scores_like_its_samples_in_any_order(encoder, mood, batch_size):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 12))) for _ in range(9)] + HOSTILE
    columns = {"reference": [rng.choice(TEXTS) for _ in texts]}
    backwards = {"reference": columns["reference"][::-1]}
    prompts = ["p"] * len(texts)
    for reward in make_both(encoder, mood, batch_size):
        batch = reward(prompts, texts, **columns)
        singles = [
            reward(["p"], [text], reference=[r])[0]
            for text, r in zip(texts, columns["reference"], strict=True)
        ]
        assert batch == pytest.approx(singles, abs=1e-5)
        assert reward(prompts, texts[::-1], **backwards) == pytest.approx(batch[::-1], abs=1e-5)
        assert all(0 <= score <= 1 for score in batch)
        assert max(batch) - min(batch) > 0.01  # scores that never differ would prove nothing


def test_long_texts_are_cut_counted_and_named_once(encoder, mood):
    for reward in make_both(encoder, mood, 4):
        with pytest.warns(UserWarning, match=r"2 of \d texts are longer than 32 tokens"):
            reward(["p"] * 3, ["sky", "sky " * 40, "sky " * 50], reference=["blue"] * 3)
        assert reward.function.truncated == 2
        assert reward.function.last_truncated == [False, True, True]


def test_a_response_counts_as_cut_where_a_reference_is(encoder):
    reward = make_reward("embedding_similarity", path=str(encoder), device="cpu")
    with pytest.warns(UserWarning, match="were cut"):
        reward(["p"] * 3, ["sky", "sky", ""], reference=["blue", ["blue", "sky " * 40], "blue"])
    assert reward.function.last_truncated == [False, True, False]


def test_they_pickle_without_their_models(encoder, mood):
    for reward in make_both(encoder, mood, 4):
        scores = reward(["p"] * 4, TEXTS, reference=TEXTS[::-1])
        copy = pickle.loads(pickle.dumps(reward))
        assert copy(["p"] * 4, TEXTS, reference=TEXTS[::-1]) == scores
        assert len(pickle.dumps(reward.function)) < 1000


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_they_pass_the_check_of_rewards(encoder, mood):
    data = [{"prompt": "what ?", "reference": text, "response": "sky"} for text in TEXTS[:2]]
    for reward in make_both(encoder, mood, 4):
        reward(["p"], ["sky"], reference=["sky"])  # loads the model
        report = check_reward(reward, data)
        # The mood of a model with random weights says nothing about answers.
        faults = [p for p in report.points if p.verdict == "fail" and "answers" not in p.name]
        assert faults == []
