"""The policy of a language model: loading, answering, and everything that training asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from instructrec.devices import pick_device, pick_dtype
from instructrec.policies import quantized
from instructrec.policies.base import Prompt, Responses
from instructrec.policies.chat import ChatEncoder
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.generation import CachedDecoder, Decoded, Decoder
from instructrec.policies.loading import load_source
from instructrec.policies.model_policy import ModelPolicy, check_vocabulary
from instructrec.policies.training_parts import choose_trained_weights


def load_policy(
    config: PolicyConfig,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    labels: bool = False,
) -> ModelPolicy:
    """Loads the policy that a configuration names.

    Args:
        config: Model, precision, device and which weights train.
        seed: Seed of the sampling, of new adapters and of the weights of ``tiny``.
        sampling: How the policy answers when nothing else is asked for; defaults to
            ``Sampling()``.
        labels: Whether it is to get a head of labels, for which an encoder is good, too.

    Returns:
        A language model, one with the head of labels that lies in its folder, or an encoder.

    Raises:
        PolicyError: The model cannot be found, loaded or used.
        ConfigError: A setting contradicts the model or the machine.
    """
    from instructrec.policies.encoder import EncoderPolicy
    from instructrec.policies.labels import head_file, with_saved_head

    device = pick_device(config.device)
    compute_dtype = pick_dtype(config.dtype, device)
    if config.quantization is not None:
        quantized.check_quantization(device)
    head = head_file(config.model)
    loaded = load_source(
        config.model,
        revision=config.revision,
        seed=seed,
        quantize=config.quantization is not None,
        readers=labels or head is not None,
    )
    model = choose_trained_weights(loaded, config, seed)
    quantized.settle(model, compute_dtype)
    kind = EncoderPolicy if loaded.reads_only else CausalLMPolicy
    policy = kind(
        model.to(device).eval(),
        loaded.tokenizer,
        config=config,
        compute_dtype=compute_dtype,
        sampling=sampling or Sampling(),
        seed=seed,
        continues_adapter=config.train == "lora" and loaded.adapter is not None,
        rounded_base=loaded.rounded,
    )
    return policy if head is None else with_saved_head(policy, head)


class CausalLMPolicy(ModelPolicy):
    """A causal language model that answers prompts and can be trained.

    The weights are float32 (a base in 4 bits apart) and live in ``model``; forward passes of the
    trainer run under ``autocast()``. In bfloat16, answers come from a bfloat16 copy: call
    ``sync()`` after the weights have changed.

    Args:
        model: Causal language model on its device (a PEFT model for ``lora``), with
            ``requires_grad`` set.
        tokenizer: Its tokenizer, with pad token and chat template.
        config: What it was loaded from.
        compute_dtype: Precision of the forward passes.
        sampling: How it answers by default.
        seed: Seed of its own generator.
        continues_adapter: Whether ``lora`` trains a saved adapter on. The model without its
            adapter is then not where training starts from.
        rounded_base: Whether the adapters belong on a base that was rounded to 4 bits.
        decoder: Rollout engine; ``CachedDecoder`` when None.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        config: PolicyConfig,
        compute_dtype: torch.dtype,
        sampling: Sampling,
        seed: int = 0,
        continues_adapter: bool = False,
        rounded_base: bool = False,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            config=config,
            compute_dtype=compute_dtype,
            sampling=sampling,
            continues_adapter=continues_adapter,
            rounded_base=rounded_base,
            seed=seed,
        )
        self.eos_token_ids = _eos_token_ids(model, tokenizer)
        self.pad_token_id = int(tokenizer.pad_token_id)
        check_vocabulary(model, [*self.eos_token_ids, self.pad_token_id], self.name)
        self._encoder = ChatEncoder(
            tokenizer, system_prompt=config.system_prompt, max_length=self.max_length
        )
        self.decoder: Decoder = decoder or CachedDecoder(
            model,
            compute_dtype=compute_dtype,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
            max_length=self.max_length,
            detokenize=self._detokenize,
        )

    @property
    def takes_system(self) -> bool:
        """Whether its prompts get a system message: a chat template may refuse them."""
        return self._encoder.takes_system

    @property
    def chat_template(self) -> str:
        """Chat template with which other software gives the model the same prompts."""
        return self._encoder.template

    @property
    def decode_share(self) -> float:
        """Share of the memory for decoding that a batch may take; halved where it was too much.

        Sizes of batches decide how float sums round.
        """
        return float(getattr(self.decoder, "memory_share", 1.0))

    @decode_share.setter
    def decode_share(self, share: float) -> None:
        decoder: Any = self.decoder
        if hasattr(decoder, "memory_share"):  # else the rollout engine cuts no batches
            decoder.memory_share = share

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of each prompt, unpadded, up to where the answer begins.

        Raises:
            PolicyError: A prompt is longer than the window, the chat template refuses it, or the
                model has no embedding for a token of it.
        """
        encoded = self._encoder.encode(prompts)
        check_vocabulary(self.model, [max(ids) for ids in encoded if ids], self.name)
        return encoded

    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        """Answers each prompt once; repeat prompts for several samples (they share their prefill).

        Args:
            prompts: B prompts.
            columns: Not used.
            sampling: How to draw; ``self.sampling`` when None.

        Raises:
            PolicyError: A prompt and its response do not fit into the window.
            NumericsError: The model's output is not a number.
        """
        return self.respond_ids(self.encode(prompts), sampling)

    def respond_ids(
        self, prompt_ids: Sequence[list[int]], sampling: Sampling | None = None
    ) -> Responses:
        """Answers each prompt, given as token ids, once; see ``respond``."""
        sampling = sampling or self.sampling
        decoded = self.decoder.generate(prompt_ids, sampling, self._generator)
        return Responses(
            texts=[self._text(item, sampling) for item in decoded],
            prompt_ids=list(prompt_ids),
            response_ids=[item.ids for item in decoded],
            logprobs=[item.logprobs for item in decoded],
            stop_reasons=[item.stop_reason for item in decoded],
            states=[item.states for item in decoded if item.states is not None],
        )

    def skip(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> None:
        """Leaves out the draws of answers that were given before, so that others get their own.

        Args:
            prompts: What they were answers to.
            sampling: How they were drawn; ``self.sampling`` when None.
        """
        self.decoder.skip(len(prompts), sampling or self.sampling, self._generator)

    def keeping_states(self, layer: int) -> AbstractContextManager[None]:
        """Responses carry hidden states until the block ends, where the rollout engine can.

        Args:
            layer: Whose input to keep beside the last hidden states; 0 keeps none.
        """
        keeping: Any = getattr(self.decoder, "keeping_states", None)
        return nullcontext() if keeping is None else keeping(layer)

    def listening(self, listener: Callable[[str], None]) -> AbstractContextManager[None]:
        """Tells the text of a response while it is drawn, until the block ends.

        For one response at a time, and for rollout engines that can; others tell nothing.

        Args:
            listener: Receives pieces of text, special tokens left out, never half a character.
                What it raises (such as KeyboardInterrupt) ends the response.
        """
        listening: Any = getattr(self.decoder, "listening", None)
        if listening is None:
            return nullcontext()
        ids: list[int] = []
        told = ""

        def listen(token: int) -> None:
            nonlocal told
            ids.append(token)
            text = self._detokenize(ids)
            if not text.endswith("\ufffd"):  # the rest of a character's bytes is to come
                new, told = text[len(told) :], text
                listener(new)

        started: AbstractContextManager[None] = listening(listen)
        return started

    def follow_up(self, response_ids: Sequence[int], message: str) -> list[int]:
        """Returns the token ids between a sampled response and the answer to the next message.

        A conversation goes on token in, token out: the prompt of the next answer is the last
        prompt, the response as sampled, and these ids.

        Raises:
            PolicyError: The chat template rewrites earlier turns.
        """
        last = response_ids[-1]
        ended = last in self.eos_token_ids
        return self._encoder.follow_up(message, end_token=last if ended else None)

    def sync(self) -> None:
        """Makes answers come from the weights as they are now.

        Copies those that train into the decode copy; nothing to do in float32.
        """
        self.decoder.sync()

    def _detokenize(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _text(self, item: Decoded, sampling: Sampling) -> str:
        """The response without its end token, cut at the first stop string, stripped."""
        ids = item.ids[:-1] if item.ids[-1] in self.eos_token_ids else item.ids
        text = self._detokenize(ids)
        found = [text.find(stop) for stop in sampling.stop_strings if stop in text]
        return text[: min(found, default=len(text))].strip()


def _eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end token first (it ends a turn), then those of the generation settings."""
    ids = [int(tokenizer.eos_token_id)]
    settings = getattr(model, "generation_config", None)
    more = getattr(settings, "eos_token_id", None)
    more = [more] if isinstance(more, int) else list(more or [])
    return ids + [int(token) for token in more if token != ids[0]]
