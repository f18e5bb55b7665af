"""Rewards of this project inside a trainer of TRL, unchanged."""

from __future__ import annotations

import pytest

from instructrec.rewards import FailedScore, Status


async def half(completions, **columns):
    """Fails on every second response, which TRL leaves out of its mean."""
    failed = FailedScore(Status.TIMEOUT, "late")
    return [failed if i % 2 else 0.5 for i, _ in enumerate(completions)]


@pytest.mark.slow
def test_a_grpo_trainer_of_trl_trains_on_our_rewards(tmp_path):
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    from instructrec.rewards import make_reward

    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<unk>", "</s>", "<pad>", "yes", "no"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
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
        reward_funcs=[make_reward("exact_match"), make_reward("bleu"), make_reward(half)],
        args=GRPOConfig(
            output_dir=str(tmp_path),
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
        train_dataset=Dataset.from_dict({"prompt": ["yes"] * 4, "reference": ["no"] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    (log,) = (entry for entry in trainer.state.log_history if "reward" in entry)
    exact, overlap = (log[f"rewards/{name}/mean"] for name in ("exact_match", "bleu"))
    assert log["rewards/half/mean"] == 0.5
    assert 0 < exact < 1
    assert overlap == exact  # of one word, both ask whether it is the right one
    assert log["reward"] == pytest.approx(exact + overlap + 0.25)
