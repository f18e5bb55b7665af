"""A byte-level language model of a hundred thousand weights, made in memory, for tests and toys.

It needs no file and no network: the vocabulary is the 256 bytes and three special tokens, the
weights are random and depend on the seed alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TINY_NAMES = ("tiny", "tiny-pad-eos")
"""Model names of this module; in the second one the pad token is the end token, as in SmolLM2."""

START, END, PAD = "<|im_start|>", "<|im_end|>", "<pad>"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
    "{% elif m['content'] %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
"""Instructions as they are, answers between the two markers: few tokens, prefix-stable."""


def make_tiny_tokenizer(*, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """Makes the byte-level tokenizer: token ids 0-255 are the bytes, 256-258 are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        pad_token=END if pad_is_eos else PAD,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_tiny_model(seed: int = 0, *, pad_is_eos: bool = False) -> LlamaForCausalLM:
    """Makes a randomly initialised two-layer Llama (hidden 64, window 512) in float32.

    Args:
        seed: Seed of the weights. The global random state of torch is left as it was.
        pad_is_eos: Whether the pad token is the end token.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257 if pad_is_eos else 258,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def _byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
