"""Rewards of this project inside a trainer of TRL, unchanged, and TRL's own among ours."""

from __future__ import annotations

import pytest

from instructrec.rewards import FailedScore, Status, make_reward, make_rewards

WORDS = ["<unk>", "</s>", "<pad>", "yes", "no", "say"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


async def half(completions, **columns):
    return [0.5 for _ in completions]


def late(completions, **columns):
    """Fails on every second response, which TRL leaves out of its mean."""
    failed = FailedScore(Status.TIMEOUT, "late")
    return [failed if i % 2 else 1.0 for i, _ in enumerate(completions)]


def one_token(completion_ids, **columns):
    return [float(len(ids) == 1) for ids in completion_ids]


def train(folder, prompts, rewards):
    """One step of TRL's GRPO on a model of six words; returns its log."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=words["</s>"],
        pad_token_id=words["<pad>"],
    )
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(config),
        reward_funcs=rewards,
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=32,
            num_generations=32,
            max_completion_length=1,
            max_steps=1,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, "reference": ["no"] * len(prompts)}),
        processing_class=tokenizer,
    )
    trainer.train()
    (log,) = (entry for entry in trainer.state.log_history if "reward" in entry)
    return log


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["yes", [{"role": "user", "content": "say yes"}]])
def test_a_grpo_trainer_of_trl_trains_on_our_rewards(prompt, tmp_path):
    parts = {"one_token": one_token, "exact_match": 1.0}
    rewards = [
        make_reward("exact_match"),
        make_reward("bleu"),
        make_reward(half),
        make_reward(one_token),
        make_reward("gate", parts=parts),
        make_reward(late),
    ]
    log = train(tmp_path, [prompt] * 4, rewards)
    names = ("exact_match", "bleu", "half", "one_token", "gate")
    exact, overlap, constant, length, gated = (log[f"rewards/{name}/mean"] for name in names)
    assert (constant, length) == (0.5, 1.0)
    assert 0 < exact < 1
    assert overlap == gated == exact  # of one word, both ask whether it is the right one
    assert log["rewards/late/mean"] == 1.0
    assert log["reward"] == pytest.approx(sum((exact, overlap, constant, length, gated, 0.5)))


# TRL's among ours ---------------------------------------------------------------------------------

THINKS = "<think>\nso it is\n</think>\nyes"


@pytest.mark.parametrize("form", ["text", "chat"])
def test_rewards_of_trl_score_text_and_chats_in_our_sums(form):
    texts = [THINKS, "yes"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    rewards = make_rewards(
        {
            "think": "trl.rewards:think_format_reward",
            "short": {
                "use": "trl.rewards:get_soft_overlong_punishment",
                "options": {"max_completion_len": 10, "soft_punish_cache": 4},
            },
            "first": {
                "use": "gate",
                "options": {"parts": {"form": "trl.rewards:think_format_reward", "half": half}},
            },
        }
    )
    batch = rewards.score(
        ["p", "p"], texts if form == "text" else chats, {}, {"completion_ids": [[1] * 8, [1] * 6]}
    )
    assert batch.parts["think"].tolist() == [1.0, 0.0]
    assert batch.parts["short"].tolist() == [-0.5, 0.0]
    assert batch.parts["first"].tolist() == [0.5, 0.0]


def test_a_reward_of_trl_runs_in_a_worker():
    spec = {"use": "trl.rewards:think_format_reward", "isolation": "worker"}
    rewards = make_rewards({"think": spec})
    batch = rewards.score(["p", "p"], [THINKS, "yes"], {})
    rewards.close()
    assert batch.total.tolist() == [1.0, 0.0]
