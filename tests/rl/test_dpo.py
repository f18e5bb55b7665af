from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from datasets import Dataset

from instructrec.errors import ConfigError, DataError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling
from instructrec.rl.config import DPOConfig
from instructrec.rl.dpo import Pair, Preference, _encode, preference_loss, run_dpo
from instructrec.rl.fitting import Surroundings
from instructrec.rl.trl_bridge import quiet_settings

PAIRS = [Pair(f"name {letter}", "aa", "zzz") for letter in "abcdefgh"]
FAST = DPOConfig(max_steps=12, batch_size=8, learning_rate=2e-3)


def make_policy(**changes):
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes), seed=0)


def run(policy, config=FAST, pairs=PAIRS, validation=()):
    log = []
    around = Surroundings(on_step=log.append)
    result = run_dpo(policy, pairs, validation, config, seed=0, around=around)
    return result, log


def logprob(policy, prompt, response):
    """Log-probability of a response and its end, by the model's own logits."""
    (ids,) = policy.encode([prompt])
    answer = [*response.encode(), policy.eos_token_ids[0]]
    logits = policy.model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(answer))


def test_the_loss_of_a_pair_is_that_of_the_paper() -> None:
    margin = torch.tensor([0.0, 2.0, -1.0])
    expected = [math.log(2), math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(0.5))]
    torch.testing.assert_close(preference_loss(margin, 0.5), torch.tensor(expected))


def test_training_starts_where_nothing_has_been_gained() -> None:
    _, log = run(make_policy(), dataclasses.replace(FAST, max_steps=1))
    assert log[0]["dpo/loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert log[0]["dpo/margin"] == pytest.approx(0, abs=1e-5)


def test_it_learns_which_response_is_preferred() -> None:
    policy = make_policy()
    others = [Pair(f"name {letter}", "aa", "zzz") for letter in "xyz"]
    before = [logprob(policy, p.prompt, p.chosen).item() for p in others]
    rejected = [logprob(policy, p.prompt, p.rejected).item() for p in others]
    config = dataclasses.replace(FAST, eval_every=6)
    result, log = run(policy, config, validation=others)
    measured = [row for row in log if "dpo/val_accuracy" in row]
    assert [row["sft/step"] for row in measured] == [0, 6, 12]
    assert measured[0]["dpo/val_accuracy"] == 0 and measured[-1]["dpo/val_accuracy"] == 1
    assert measured[-1]["dpo/val_loss"] < 0.5 < measured[0]["dpo/val_loss"]
    assert (result.steps, result.best_step) == (12, 12)
    gained = [
        logprob(policy, p.prompt, p.chosen).item()
        - first
        - (logprob(policy, p.prompt, p.rejected).item() - second)
        for p, first, second in zip(others, before, rejected, strict=True)
    ]
    assert measured[-1]["dpo/val_margin"] == pytest.approx(0.1 * sum(gained) / 3, rel=1e-3)


def test_loss_and_gradient_are_those_of_trl(tmp_path) -> None:
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer

    pairs = [Pair("name a", "abc", "z"), Pair("a longer name", "b", "yx"), Pair("c", "c", "cc")]
    policy = make_policy()
    start = copy.deepcopy(policy.model)
    config = DPOConfig(beta=0.3)
    objective = Preference(policy, config)
    rows = objective.with_reference(_encode(policy, pairs), 3)
    with torch.no_grad():  # away from the start, where every loss is log 2
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    texts = [policy.tokenizer.decode(policy.encode([p.prompt])[0]) for p in pairs]
    data = [
        {"prompt": text, "chosen": pair.chosen, "rejected": pair.rejected}
        for text, pair in zip(texts, pairs, strict=True)
    ]
    with quiet_settings():
        settings = TRLConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            per_device_train_batch_size=3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        )
    peer = copy.deepcopy(policy.model)
    trainer = DPOTrainer(
        model=peer,
        ref_model=start,
        args=settings,
        train_dataset=Dataset.from_list(data),
        processing_class=policy.tokenizer,
    )
    (batch,) = trainer.get_train_dataloader()
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    ours = objective.loss(objective.collate(rows), None)
    ours.backward()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
    for (name, a), b in zip(policy.model.named_parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_neither_loss_nor_step_depends_on_the_micro_batch() -> None:
    uneven = [*PAIRS[:3], Pair("a longer instruction", "with a longer answer", "b")]
    states = []
    for size in (4, 2, 1):
        policy = make_policy()
        _, log = run(policy, DPOConfig(max_steps=2, batch_size=4, micro_batch_size=size), uneven)
        states.append((log[-1]["dpo/loss"], log[-1]["dpo/margin"], policy.model.state_dict()))
    for loss, margin, weights in states[1:]:
        assert loss == pytest.approx(states[0][0], rel=1e-4)
        assert margin == pytest.approx(states[0][1], rel=1e-3, abs=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, states[0][2][name], atol=2e-5, rtol=1e-3)


def test_adapters_with_dropout_start_at_the_reference_and_answer_without_it() -> None:
    policy = make_policy(train="lora", lora=LoraSettings(r=2, dropout=0.5))
    _, log = run(policy, dataclasses.replace(FAST, max_steps=3))
    assert log[0]["dpo/loss"] == pytest.approx(math.log(2), rel=1e-5)  # new adapters add nothing
    greedy = Sampling(max_new_tokens=8, temperature=0)
    answers = [policy.respond(["name a"], sampling=greedy).texts for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] and not policy.model.training


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        run(make_policy(), pairs=[])
    with pytest.raises(DataError, match=r"dpo\.eval_every.*no validation pairs"):
        run(make_policy(), dataclasses.replace(FAST, eval_every=1))
    long = Pair("name a", "a", "x" * make_policy().max_length)
    with pytest.raises(DataError, match=r"tokens with its response .*holds 512"):
        run(make_policy(), pairs=[*PAIRS, long])
    with pytest.raises(ConfigError, match=r"dpo\.beta = 0: expected more than 0"):
        DPOConfig(beta=0)
