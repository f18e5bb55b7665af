from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.rl.config import SFTConfig
from instructrec.rl.fitting import Fit, Surroundings
from instructrec.rl.sft import Demonstration, run_sft

DEMONSTRATIONS = [Demonstration(f"name {letter}", f"{letter}{letter}") for letter in "abcdefgh"]
FAST = SFTConfig(max_steps=150, batch_size=8, learning_rate=5e-3)


def make_policy(**changes):
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes), seed=0)


def run(policy, config=FAST, validation=(), demonstrations=DEMONSTRATIONS):
    log = []
    around = Surroundings(on_step=log.append)
    return run_sft(policy, demonstrations, validation, config, seed=0, around=around), log


def test_it_learns_the_responses_and_their_end():
    policy = make_policy()
    result, log = run(policy)
    answers = policy.respond(
        [d.prompt for d in DEMONSTRATIONS], sampling=Sampling(max_new_tokens=8, temperature=0)
    )
    assert answers.texts == [d.response for d in DEMONSTRATIONS]
    assert set(answers.stop_reasons) == {"eos"}
    assert result.steps == result.best_step == len(log) == 150
    assert log[-1]["sft/loss"] < 0.1 < log[0]["sft/loss"]


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_the_first_loss_is_that_of_the_responses_alone(micro_batch_size):
    uneven = [*DEMONSTRATIONS[:7], Demonstration("a longer instruction", "with a longer answer")]
    policy = make_policy()
    config = dataclasses.replace(FAST, max_steps=1, micro_batch_size=micro_batch_size)
    _, log = run(policy, config, demonstrations=uneven)
    fresh = make_policy()
    total, count = 0.0, 0
    for demonstration in uneven:
        (prompt,) = fresh.encode([demonstration.prompt])
        answer = [*demonstration.response.encode(), fresh.eos_token_ids[0]]
        with torch.no_grad():
            logits = fresh.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for offset, token in enumerate(answer):
            total -= float(logits[len(prompt) - 1 + offset, token])
            count += 1
    assert log[0]["sft/loss"] == pytest.approx(total / count, rel=1e-4)


def test_it_stops_early_and_keeps_the_best_weights():
    contrary = [Demonstration(d.prompt, "zz") for d in DEMONSTRATIONS]
    policy = make_policy()
    before = policy.weights_hash()
    config = dataclasses.replace(FAST, eval_every=5, early_stopping_patience=2)
    result, log = run(policy, config, validation=contrary)
    losses = [step["sft/val_loss"] for step in log if "sft/val_loss" in step]
    assert result.best_score == min(losses)
    assert result.best_step == 5 * losses.index(min(losses))
    assert result.steps == result.best_step + 10 < 150
    assert (policy.weights_hash() == before) == (result.best_step == 0)


def test_the_validation_loss_is_a_mean_over_tokens_however_they_are_cut():
    uneven = [*DEMONSTRATIONS[:3], Demonstration("a longer instruction", "with a longer answer")]
    losses = []
    for micro_batch_size in (8, 2, 1):
        config = dataclasses.replace(
            FAST, max_steps=1, eval_every=1, micro_batch_size=micro_batch_size
        )
        _, log = run(make_policy(), config, validation=uneven)
        losses.append(log[0]["sft/val_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_learning_rate_that_is_told_is_that_of_the_step():
    config = dataclasses.replace(FAST, max_steps=4, warmup_steps=2, lr_schedule="linear")
    _, log = run(make_policy(), config)
    shares = [step["sft/lr"] / FAST.learning_rate for step in log]
    assert shares == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_weights_on_one_of_several_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    weight = SimpleNamespace(device=torch.device("cuda:0"))
    around = Surroundings(on_step=lambda metrics: None)
    with pytest.raises(ConfigError, match="2 GPUs and one process"):
        Fit({"weight": weight}, None, FAST, 0, around, None)


def test_a_supervised_step_beyond_the_memory_says_what_helps():
    def full(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    policy = make_policy()
    for weights in policy.model.parameters():
        if weights.requires_grad:
            weights.register_hook(full)
    with pytest.raises(PolicyError, match=r"in a training step.*sft\.micro_batch_size"):
        run(policy)


def test_only_the_chosen_layers_train():
    policy = make_policy(train="last_layers", num_layers=1)
    frozen = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    run(policy, dataclasses.replace(FAST, max_steps=2))
    assert frozen
    assert all(torch.equal(p, frozen[n]) for n, p in policy.model.named_parameters() if n in frozen)


def test_the_same_seed_gives_the_same_weights():
    policies = [make_policy(), make_policy()]
    for policy in policies:
        run(policy, dataclasses.replace(FAST, max_steps=3))
    assert policies[0].weights_hash() == policies[1].weights_hash()


def test_the_model_keeps_its_own_forward():
    policy = make_policy()
    run(policy, dataclasses.replace(FAST, max_steps=1))
    assert "forward" not in vars(policy.model)


def test_zero_steps_change_nothing():
    policy = make_policy()
    before = policy.weights_hash()
    result, log = run(policy, dataclasses.replace(FAST, max_steps=0))
    assert (result.steps, log) == (0, [])
    assert math.isnan(result.loss)
    assert policy.weights_hash() == before


def test_missing_demonstrations_are_errors():
    with pytest.raises(DataError, match="no demonstrations"):
        run(make_policy(), demonstrations=[])
    with pytest.raises(DataError, match="no validation"):
        run(make_policy(), dataclasses.replace(FAST, eval_every=5))


def test_a_demonstration_that_outgrows_the_window_is_refused():
    policy = make_policy()
    long = Demonstration("name a", "x" * policy.max_length)
    with pytest.raises(DataError, match=r"with its response .*holds 512.*task\.options\.filters"):
        run(policy, demonstrations=[*DEMONSTRATIONS, long])


def test_weights_can_be_chosen_by_the_reward_of_responses():
    policy = make_policy()
    rewards, hashes = {0: 0.1, 2: 0.3, 4: 0.9, 6: 0.9, 8: 0.2}, {}

    def evaluate(step):
        hashes[step] = policy.weights_hash()
        policy.respond(["a prompt"], sampling=Sampling(max_new_tokens=2))
        return {"eval/total/mean": rewards[step]}

    log = []
    config = SFTConfig(
        max_steps=20, batch_size=4, eval_every=2, best_by="reward", early_stopping_patience=2
    )
    result = run_sft(
        policy,
        DEMONSTRATIONS,
        DEMONSTRATIONS,
        config,
        seed=0,
        around=Surroundings(on_step=log.append),
        evaluate=evaluate,
    )
    assert (result.steps, result.best_step, result.best_score) == (8, 4, 0.9)
    assert policy.weights_hash() == hashes[4] != hashes[8]
    logged = [row["eval/total/mean"] for row in log if "eval/total/mean" in row]
    assert logged == list(rewards.values())
    plain = make_policy()  # measuring in between must not change what is learned
    config = SFTConfig(max_steps=4, batch_size=4)
    run_sft(plain, DEMONSTRATIONS, [], config, seed=0, around=Surroundings(on_step=log.append))
    assert plain.weights_hash() == hashes[4]


def test_neither_loss_nor_step_depends_on_the_micro_batch():
    uneven = [*DEMONSTRATIONS[:3], Demonstration("a longer instruction", "with a longer answer")]
    runs = []
    for micro_batch_size in (4, 2, 1):
        policy = make_policy()
        config = SFTConfig(max_steps=1, batch_size=4, micro_batch_size=micro_batch_size)
        result, _ = run(policy, config, demonstrations=uneven)
        runs.append((result.loss, policy.model.state_dict()))
    for loss, weights in runs[1:]:
        assert loss == pytest.approx(runs[0][0], rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, runs[0][1][name], atol=2e-5, rtol=1e-4)


def test_epochs_take_the_place_of_steps():
    config = dataclasses.replace(FAST, epochs=2.5, batch_size=4)
    result, _ = run(make_policy(), config)
    assert result.steps == 5  # two and a half times eight, by four
    with pytest.raises(ConfigError, match=r"sft\.epochs = 0: expected more than 0"):
        SFTConfig(epochs=0)


def test_dropout_changes_what_is_learned_but_no_answer():
    plain, dropped = make_policy(), make_policy()
    run(plain, dataclasses.replace(FAST, max_steps=3))
    run(dropped, dataclasses.replace(FAST, max_steps=3, dropout=0.3))
    assert plain.weights_hash() != dropped.weights_hash()
    sampling = Sampling(max_new_tokens=8, temperature=0)
    answers = [dropped.respond(["name a"], sampling=sampling) for _ in range(2)]
    assert answers[0].texts == answers[1].texts
    with pytest.raises(ConfigError, match=r"sft\.dropout = 1"):
        SFTConfig(dropout=1)


def test_training_goes_by_the_reward_that_is_named():
    scores = {0: 0.2, 2: 0.8, 4: 0.5}
    config = SFTConfig(max_steps=4, batch_size=4, eval_every=2, best_by="eval/chrf/mean")
    told = {"seed": 0, "around": Surroundings(on_step=lambda step: None)}
    measured = {"evaluate": lambda step: {"eval/chrf/mean": scores[step], "eval/total/mean": -step}}
    result = run_sft(make_policy(), DEMONSTRATIONS, DEMONSTRATIONS, config, **told, **measured)
    assert (result.best_step, result.best_score) == (2, 0.8)
    other = dataclasses.replace(config, best_by="eval/bleu/mean")
    with pytest.raises(DataError, match="no such number; expected one of eval/chrf/mean"):
        run_sft(make_policy(), DEMONSTRATIONS, DEMONSTRATIONS, other, **told, **measured)
    with pytest.raises(ConfigError, match=r"sft\.best_by = 'sft/loss'"):
        SFTConfig(best_by="sft/loss")
