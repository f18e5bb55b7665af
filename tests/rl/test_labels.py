from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from instructrec.errors import DataError, PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.labels import HEAD_FILE, LabelPolicy, writer
from instructrec.rl.config import SFTConfig
from instructrec.rl.fitting import Surroundings
from instructrec.rl.labels import run_labels
from instructrec.rl.sft import Demonstration

WORDS = [*("red apple", "green pear", "red berry", "green grape", "a red one", "green leaf thing")]
ROWS = [Demonstration(word, "warm" if "red" in word else "cold") for word in WORDS]
FAST = SFTConfig(max_steps=40, batch_size=6, learning_rate=5e-3, head="labels")
GREEDY = Sampling(temperature=0)


def make(labels=("cold", "warm"), **changes):
    config = PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes)
    return LabelPolicy(load_policy(config, seed=0), labels)


def run(policy, config=FAST, rows=ROWS, validation=()):
    log = []
    around = Surroundings(on_step=log.append)
    return run_labels(policy, rows, validation, config, seed=0, around=around), log


@pytest.mark.parametrize("train", ["full", "last_layers", "lora", "head"])
def test_it_learns_labels_and_comes_back_from_the_disk(train: str, tmp_path) -> None:
    policy = make(train=train, num_layers=1)
    before = {n: p.clone() for n, p in policy.model.named_parameters() if "label_head" not in n}
    rate = 0.3 if train == "head" else FAST.learning_rate
    _, log = run(policy, dataclasses.replace(FAST, learning_rate=rate, max_steps=60))
    assert log[0]["sft/loss"] == pytest.approx(math.log(2))  # a head of zeros knows nothing
    assert log[-1]["sft/accuracy"] == 1 and log[-1]["sft/loss"] < 0.5
    assert policy.respond(WORDS, sampling=GREEDY).texts == [row.response for row in ROWS]
    changed = {n for n, p in policy.model.named_parameters() if n in before} and {
        n for n, p in policy.model.named_parameters() if n in before and not p.equal(before[n])
    }
    assert bool(changed) == (train != "head")
    if train == "last_layers":
        assert not any("layers.0" in name or "embed" in name for name in changed)
    policy.save(tmp_path)
    assert (tmp_path / HEAD_FILE).is_file()
    settings = dataclasses.replace(policy.config, model=str(tmp_path))
    again = load_policy(settings)
    assert isinstance(again, LabelPolicy) and again.labels == ("cold", "warm")
    assert again.weights_hash() == policy.weights_hash()
    assert again.respond(WORDS, sampling=GREEDY).texts == [row.response for row in ROWS]


def test_scores_are_the_head_on_the_last_state_of_the_prompt() -> None:
    policy = make()
    with torch.no_grad():
        policy.model.label_head.weight.normal_()
    prompts = ["short", "a much longer prompt"]
    encoded = policy.encode(prompts)
    expected = []
    for ids in encoded:
        with torch.no_grad():
            states = policy.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            expected.append(policy.model.label_head(states))
    answers = policy.respond(prompts, sampling=GREEDY)
    assert answers.texts == [policy.labels[int(scores.argmax())] for scores in expected]
    lengths = torch.tensor([len(ids) for ids in encoded])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in encoded], batch_first=True)
    torch.testing.assert_close(policy.logits(padded, lengths), torch.stack(expected))


def test_labels_are_drawn_at_a_temperature() -> None:
    policy = make(("a", "b", "c"))
    with torch.no_grad():
        policy.model.label_head.bias.copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    texts = policy.respond(["x"] * 1000, sampling=Sampling(temperature=1.0)).texts
    assert [texts.count(label) / 1000 for label in "abc"] == pytest.approx(
        [0.7, 0.2, 0.1], abs=0.05
    )


def test_what_is_no_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"'hot' is the label of 'x'.*one of 'cold', 'warm'"):
        run(make(), rows=[Demonstration("x", "hot")])
    with pytest.raises(PolicyError, match="2 labels and writes no text: ppo needs"):
        writer(make(), "ppo")


def test_a_damaged_head_is_an_error(tmp_path) -> None:
    policy = make()
    policy.save(tmp_path)
    (tmp_path / HEAD_FILE).write_bytes(b"nothing")
    with pytest.raises(PolicyError, match="cannot put the labels"):
        load_policy(dataclasses.replace(policy.config, model=str(tmp_path)))
