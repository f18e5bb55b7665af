"""Rollout engines behind one seam: prompt ids in, sampled ids with their log-probs out.

``Decoder`` is the seam. ``CachedDecoder`` is the engine that runs everywhere: its own loop over a
key/value cache, in the process and on the device of the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from instructrec.devices import free_memory, is_out_of_memory, release_memory
from instructrec.errors import NonFiniteLogitsError, PolicyError
from instructrec.faults import Fault, note
from instructrec.phases import phase
from instructrec.policies.base import StopReason
from instructrec.policies.config import Sampling
from instructrec.policies.cpu_passes import attention_dtype, quick_passes
from instructrec.policies.decode_copy import DecodeCopy, keep_head_in_float32
from instructrec.policies.kv_cache import attention_widths, select_rows
from instructrec.policies.prefill import Forward, Prefilled, prefill
from instructrec.policies.quantized import is_quantized
from instructrec.policies.sampling import pick_tokens
from instructrec.policies.tape import TokenStates

_CPU_MEMORY = 3 * 2**29
_DROPPED_AT_ONCE = 1024
"""Prompts whose random numbers are held at once where nobody needs them."""
_DROP_SHARE = 0.1
"""Finished rows leave the batch once they are more than this share of it."""


class Decoded(NamedTuple):
    """One response."""

    ids: list[int]
    """Sampled token ids, the end token included."""
    logprobs: list[float]
    """Their log-probs under the distribution that they were drawn from (nats)."""
    stop_reason: StopReason
    """Why the response ended."""
    states: TokenStates | None = None
    """States of prompt and response, when they are kept."""


class Decoder(Protocol):
    """Whatever turns prompts into responses."""

    def sync(self) -> None:
        """Takes over the policy's trained weights."""
        ...

    def generate(
        self, prompt_ids: Sequence[list[int]], sampling: Sampling, generator: torch.Generator
    ) -> list[Decoded]:
        """Answers each prompt once, in order; drawing uses this generator and no other."""
        ...

    def skip(self, number: int, sampling: Sampling, generator: torch.Generator) -> None:
        """Leaves the generator as ``generate`` would for so many prompts, however they are cut."""
        ...


class CachedDecoder:
    """Decodes in the policy's own process.

    Every prompt gets its own random numbers before decoding starts. A response therefore
    depends on the prompt, the weights and the prompt's place in the list, but (beyond float
    noise) neither on the prompts beside it nor on how the work is cut into batches.

    Args:
        model: Causal language model, or a PEFT model around one.
        compute_dtype: float32 decodes with the model itself, any other dtype with a copy. A model
            with weights in 4 bits always decodes itself: a copy would be larger than the model.
        eos_token_ids: Tokens that end a response.
        pad_token_id: Fills up shorter prompts; may be one of the end tokens.
        max_length: Most tokens of prompt and response together.
        detokenize: Token ids -> text without special tokens, for stop strings.
        memory_bytes: Memory for cache, kept states and logits of one batch; None takes 1.5 GiB on
            a CPU and three tenths of what is free on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        compute_dtype: torch.dtype,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        max_length: int,
        detokenize: Callable[[list[int]], str],
        memory_bytes: int | None = None,
    ) -> None:
        self._copy: DecodeCopy | None = None
        if compute_dtype != torch.float32:
            if is_quantized(model):
                keep_head_in_float32(model)
            else:
                self._copy = DecodeCopy(model, compute_dtype)
        self._forward = Forward(self._copy.model if self._copy else model, pad_token_id)
        self._dtype = compute_dtype
        self._eos = frozenset(eos_token_ids)
        self._max_length = max_length
        self._detokenize = detokenize
        self._memory_bytes = memory_bytes
        self.memory_share = 1.0
        """Share of the memory that a batch may take; halved where that was too much."""
        self._kept_layer: int | None = None
        self._listener: Callable[[int], None] | None = None
        self.rows_at_once = 32 if self._forward.device.type == "cpu" else 1024
        """Prompts in one pass of the prefill."""

    @property
    def model(self) -> nn.Module:
        """The module that decodes: the copy, or the policy's own model."""
        return self._forward.model

    @property
    def copy_bytes(self) -> int:
        """Bytes of the decode copy; 0 without one."""
        return self._copy.nbytes if self._copy else 0

    def sync(self) -> None:
        """Copies the trained weights into the decode copy; nothing to do without one."""
        if self._copy is not None:
            self._copy.sync()

    @contextmanager
    def keeping_states(self, layer: int) -> Iterator[None]:
        """Responses carry their states until the block ends.

        Args:
            layer: Whose input to keep beside the last states; 0 keeps none.
        """
        self._kept_layer = layer
        try:
            yield
        finally:
            self._kept_layer = None

    @contextmanager
    def listening(self, listener: Callable[[int], None]) -> Iterator[None]:
        """Tells every token as it is drawn until the block ends: for one response at a time.

        Args:
            listener: Receives token ids, end tokens too; what it raises ends the response.
        """
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None

    @torch.no_grad()
    def generate(
        self, prompt_ids: Sequence[list[int]], sampling: Sampling, generator: torch.Generator
    ) -> list[Decoded]:
        """Answers each prompt once.

        Args:
            prompt_ids: Token ids of B prompts, unpadded.
            sampling: How to draw, and how long.
            generator: CPU generator; advances by B x max_new_tokens numbers whatever is drawn,
                and not at all for greedy decoding.

        Raises:
            PolicyError: A prompt and its response do not fit into the model's window, or one alone
                not into the memory. Prompts that together do not fit there are answered in halves.
            NonFiniteLogitsError: The model's output is not a number.
        """
        self._check_lengths(prompt_ids, sampling.max_new_tokens)
        uniform = _draws(len(prompt_ids), sampling, generator)
        results: dict[int, Decoded] = {}
        with self._decoding(), self._forward.keeping_states(self._kept_layer):
            for rows in list(self._batches(prompt_ids, sampling.max_new_tokens)):
                results |= self._answered(rows, prompt_ids, sampling, uniform)
        return [results[i] for i in range(len(prompt_ids))]

    def skip(self, number: int, sampling: Sampling, generator: torch.Generator) -> None:
        """Draws what ``generate`` would for so many prompts, and drops it."""
        for start in range(0, number, _DROPPED_AT_ONCE):
            _draws(min(number - start, _DROPPED_AT_ONCE), sampling, generator)

    def _answered(
        self,
        rows: list[int],
        prompt_ids: Sequence[list[int]],
        sampling: Sampling,
        uniform: Tensor | None,
    ) -> dict[int, Decoded]:
        """Answers some prompts; where the memory does not hold them, each half on its own.

        All random numbers were drawn before, so the answers do not depend on it.
        """
        try:
            with phase("prefill"):
                prompts = [prompt_ids[i] for i in rows]
                batch = prefill(self._forward, prompts, rows_at_once=self.rows_at_once)
            with phase("decode"):
                uniform_BT = uniform[rows] if uniform is not None else None
                most = [self.most_tokens(prompt, sampling) for prompt in prompts]
                decoded = self._decode(batch, sampling, uniform_BT, most)
            return dict(zip(rows, decoded, strict=True))
        except NonFiniteLogitsError as error:
            row = None if error.row is None else rows[error.row]
            raise NonFiniteLogitsError(str(error), row) from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise PolicyError(
                    f"out of memory while answering one prompt of {len(prompt_ids[rows[0]])} "
                    f"tokens with up to {sampling.max_new_tokens}. Lower the response length, or "
                    "use a smaller model or a larger machine."
                ) from error
        # Outside of the handler: the frames that failed, and what they held, are gone.
        release_memory()
        self.memory_share /= 2
        half = len(rows) // 2
        message = f"out of memory while answering {len(rows)} prompts at once: halved"
        note(Fault("memory", "out_of_memory", "generation", message))
        first = self._answered(rows[:half], prompt_ids, sampling, uniform)
        return first | self._answered(rows[half:], prompt_ids, sampling, uniform)

    def most_tokens(self, prompt: list[int], sampling: Sampling) -> int:
        """Most tokens of the response to a prompt; a subclass may give some prompts fewer."""
        return sampling.max_new_tokens

    def _decode(
        self, batch: Prefilled, sampling: Sampling, uniform_BT: Tensor | None, most: list[int]
    ) -> list[Decoded]:
        """Draws token after token until every row of the batch has ended."""
        cache, logits, mask = batch.cache, batch.logits, batch.token_mask
        ids: list[list[int]] = [[] for _ in range(logits.shape[0])]
        logprobs: list[list[float]] = [[] for _ in ids]
        reasons: list[StopReason | None] = [None] * len(ids)
        rows = list(range(len(ids)))  # the row of the batch -> the response it belongs to
        for step in range(sampling.max_new_tokens):
            uniform = uniform_BT[rows, step] if uniform_BT is not None else None
            tokens, token_logprobs = pick_tokens(logits, sampling, uniform)
            picked = zip(rows, tokens.tolist(), token_logprobs.tolist(), strict=True)
            for row, token, logprob in picked:
                if reasons[row] is None:
                    ids[row].append(token)
                    if self._listener is not None:
                        self._listener(token)
                    logprobs[row].append(_finite(logprob, row, step))
                    reasons[row] = self._stop_reason(ids[row], sampling, most[row])
            alive = [i for i, row in enumerate(rows) if reasons[row] is None]
            if not alive:
                break
            if len(alive) < (1 - _DROP_SHARE) * len(rows):
                select_rows(cache, alive)
                rows, tokens, mask = [rows[i] for i in alive], tokens[alive], mask[alive]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits = self._forward(tokens[:, None], mask, cache)
            if self._forward.probe is not None and batch.tapes is not None:
                newest = self._forward.probe.newest()
                for place, row in enumerate(rows):
                    if reasons[row] is None:  # the others wait here to be dropped
                        batch.tapes[row].add(newest, place)
        ended = [reason for reason in reasons if reason is not None]  # all of them, by now
        states = [tape.states() for tape in batch.tapes] if batch.tapes else [None] * len(ids)
        return [Decoded(*parts) for parts in zip(ids, logprobs, ended, states, strict=True)]

    def _stop_reason(self, ids: list[int], sampling: Sampling, most: int) -> StopReason | None:
        if ids[-1] in self._eos:
            return StopReason.EOS
        if sampling.stop_strings:
            # Every token carries at least one byte, but for a few that carry none.
            tail = max(len(text.encode()) for text in sampling.stop_strings) + 8
            text = self._detokenize(ids[-tail:])
            if any(stop in text for stop in sampling.stop_strings):
                return StopReason.STOP_STRING
        return StopReason.LENGTH if len(ids) == most else None

    def _check_lengths(self, prompt_ids: Sequence[list[int]], max_new_tokens: int) -> None:
        if not all(prompt_ids):
            raise PolicyError("a prompt has no token at all: expected at least one.")
        longest = max(map(len, prompt_ids), default=0)
        if longest + max_new_tokens > self._max_length:
            raise PolicyError(
                f"a prompt of {longest} tokens and a response of up to {max_new_tokens} do not fit "
                f"into the model's window of {self._max_length} tokens. Shorten the prompt, lower "
                "the response length, or use a model with a longer window."
            )

    def _batches(self, prompt_ids: Sequence[list[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Cuts the prompts, shortest first and equal ones side by side, to fit the memory."""
        budget = (self._memory_bytes or _free_memory(self._forward.device)) * self.memory_share
        num_states = 0 if self._kept_layer is None else 1 + bool(self._kept_layer)
        with self._autocast():
            cached = attention_dtype(self._forward.device) or self._dtype
        per_token, per_row = _memory_use(self._forward.config, cached, num_states)
        order = sorted(range(len(prompt_ids)), key=lambda i: (len(prompt_ids[i]), prompt_ids[i]))
        batch: list[int] = []
        for i in order:
            # Sorted by length, so the newcomer is the longest: all rows are padded to it.
            row = per_row + per_token * (len(prompt_ids[i]) + max_new_tokens)
            if batch and (len(batch) + 1) * row > budget:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._copy is not None:
            return self._copy.autocast()
        enabled = self._dtype != torch.float32
        return torch.autocast(self._forward.device.type, dtype=self._dtype, enabled=enabled)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Evaluation mode, and the precision of the decoding module whatever surrounds us."""
        was_training = self.model.training
        self.model.eval()  # checkpointing of activations in training mode would forbid a cache
        try:
            with (
                self._autocast(),
                quick_passes(self._forward.device),
                self._forward.compact_head_input(),
            ):
                yield
        finally:
            self.model.train(was_training)


def _draws(number: int, sampling: Sampling, generator: torch.Generator) -> Tensor | None:
    """Random numbers of all tokens of so many responses, (B, T); none for greedy ones."""
    if sampling.greedy:
        return None
    shape = (number, sampling.max_new_tokens)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def _finite(logprob: float, row: int, step: int) -> float:
    if not math.isfinite(logprob):
        raise NonFiniteLogitsError(
            f"the policy gave token {step + 1} of a response the log-prob {logprob}: its logits "
            "are not finite. Lower the learning rate, or go back to an earlier checkpoint.",
            row,
        )
    return logprob


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(0.3 * free_memory(device))
    return _CPU_MEMORY


def _memory_use(config: Any, dtype: torch.dtype, num_states: int) -> tuple[int, int]:
    """Bytes for one token in the cache and for its kept states, and for one row's logits."""
    config = config.get_text_config(decoder=True)
    _, cache_width = attention_widths(config)
    cached = config.num_hidden_layers * cache_width * dtype.itemsize
    kept = num_states * config.hidden_size * torch.float32.itemsize
    # The cache exists twice while rows are joined or dropped, states while pieces become one;
    # logits exist in a few float32 versions.
    return 2 * (cached + kept), 16 * int(config.vocab_size)
