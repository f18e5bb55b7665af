"""A rollout as tensors, the trainer's own pass over it, and its minibatches.

Shape suffixes: B episodes, T response positions padded on the right, L positions of a whole
sequence (prompt and response), P of which all sequences share and S are a row's own, N action
tokens of a micro-batch, packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import Tensor

from instructrec import processes
from instructrec.phases import phase
from instructrec.policies.critic import Critic
from instructrec.policies.prefill import SHORTEST_SHARED_PREFIX, common_prefix
from instructrec.policies.tape import TokenStates
from instructrec.policies.trunk import CutStates, Trunk, pad_right
from instructrec.rl.drift import Drift, measure_drift
from instructrec.rl.losses import LossBatch
from instructrec.rl.micro_batches import MicroBatch
from instructrec.rl.rollout import Rollout


class Reference(Protocol):
    """The policy that the KL penalty pulls towards."""

    def logprobs(self, sequences: Packed, cut: CutStates | None) -> Tensor:
        """Log-probs of the packed action tokens (N,)."""


@dataclass(frozen=True)
class Packed:
    """The sequences of a micro-batch, and where their action tokens are."""

    ids_BL: Tensor
    """Prompt and response ids, padded on the right."""
    row_N: Tensor
    """Row of each action token."""
    state_N: Tensor
    """Own column of the hidden state from which the token was predicted: one before it."""
    shared: int
    """First columns of ids_BL that all rows share; hidden states start behind them."""

    @property
    def tokens_N(self) -> Tensor:
        """Ids of the action tokens."""
        return self.ids_BL[self.row_N, self.position_N + 1]

    @property
    def position_N(self) -> Tensor:
        """Column of ids_BL from which each action token was predicted."""
        return self.shared + self.state_N

    def states(self, hidden_BSH: Tensor) -> Tensor:
        """Picks the states that predict the action tokens: (N, H)."""
        return hidden_BSH[self.row_N, self.state_N]


@dataclass
class Experience:
    """A rollout as the update sees it. Tensors (B, T) are 0 where action_mask_BT is False."""

    sequences: list[Tensor]
    """Prompt and response ids of each episode, unpadded."""
    prompt_lengths: list[int]
    """Tokens before the response."""
    action_mask_BT: Tensor
    """bool, True for tokens of the policy in episodes that are trained on."""
    actions: list[Tensor]
    """The same as positions, by episode. On the CPU: a GPU would be waited for to count them."""
    sampler_logprobs_BT: Tensor
    """Log-probs under the distribution that sampled; after the trainer's pass its own, where nobody
    knows the sampler's."""
    sampler_is_known: bool
    """Whether the sampler reported its log-probs."""
    scores_BT: Tensor
    """Environment rewards, on the last action token of their turn."""
    turn_BT: Tensor
    """int64, the turn of each position: how many turns ended before it."""
    group_B: Tensor
    """int64, episodes of one number answered the same instruction."""
    unfinished_B: Tensor
    """bool, True where the environment cut an episode that could have gone on."""
    old_logprobs_BT: Tensor
    """Log-probs of the trainer's pass before the first step."""
    values_BT: Tensor
    """Values of the same pass."""
    final_values_B: Tensor
    """Values behind the last token of unfinished episodes, 0 for the others."""
    ref_logprobs_BT: Tensor | None = None
    """Log-probs of the reference, when there is one."""
    advantages_BT: Tensor | None = None
    """Set by the estimator."""
    returns_BT: Tensor | None = None
    """Set by the estimator."""
    kept: dict[int, TokenStates] = field(default_factory=dict)
    """States that decoding kept, by episode; empty when the trainer computes its own."""
    shared: int = 0
    """Tokens that all sequences begin with and that run once for all of them (P)."""
    cut_states: dict[int, Tensor] = field(default_factory=dict)
    """States that enter the first trained layer, (S_i, H) by episode; empty where all train."""
    shared_cut_1PH: Tensor | None = None
    """The same of the shared tokens."""

    def pack(self, rows: Sequence[int]) -> Packed:
        """Pads and packs the given episodes."""
        ids_BL = pad_right([self.sequences[i] for i in rows])
        before = [self.actions[i] + self.prompt_lengths[i] - 1 - self.shared for i in rows]
        place_N = _numbered(range(len(rows)), before).to(ids_BL.device)
        return Packed(ids_BL, place_N[0], place_N[1], self.shared)

    def places(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Episode and position of the action tokens of the given ones, packed like ``pack``."""
        place_N = _numbered(rows, [self.actions[i] for i in rows]).to(self.action_mask_BT.device)
        return place_N[0], place_N[1]

    def cut(self, rows: Sequence[int]) -> CutStates | None:
        """Padded states at the cut for the given episodes, or None."""
        if not self.cut_states:
            return None
        return CutStates(pad_right([self.cut_states[i] for i in rows]), self.shared_cut_1PH)

    def loss_batch(self, rows: Sequence[int]) -> LossBatch:
        """The loss's side of the given episodes, packed like ``pack(rows)``."""
        assert self.advantages_BT is not None and self.returns_BT is not None
        places = self.places(rows)
        picked = {
            "old_logprobs": self.old_logprobs_BT,
            "advantages": self.advantages_BT,
            "old_values": self.values_BT,
            "returns": self.returns_BT,
        }
        if self.ref_logprobs_BT is not None:
            picked["ref_logprobs"] = self.ref_logprobs_BT
        assert set(picked) | {"action_mask", "ref_logprobs"} == {f.name for f in fields(LossBatch)}
        packed = {name: tensor[places] for name, tensor in picked.items()}
        return LossBatch(**packed, action_mask=torch.ones_like(places[0], dtype=torch.bool))

    def sampler_logprobs(self, rows: Sequence[int]) -> Tensor:
        """The sampler's log-probs of the given episodes, packed like ``pack(rows)``."""
        return self.sampler_logprobs_BT[self.places(rows)]

    def micro_batches(self, rows: Sequence[int], most: MicroBatch) -> Iterator[list[int]]:
        """Cuts the given episodes, the shortest first, into what one pass takes."""
        return most.cut(rows, [len(self.sequences[i]) for i in rows])

    def by_length(self, rows: Sequence[int]) -> list[int]:
        """The given episodes, the shortest first."""
        return sorted(rows, key=lambda i: (len(self.sequences[i]), i))

    def drift(self) -> Drift:
        """How far the sampler was from the trainer's pass over the action tokens."""
        return measure_drift(self.sampler_logprobs_BT, self.old_logprobs_BT, self.action_mask_BT)

    @property
    def num_tokens(self) -> int:
        """Action tokens that are trained on."""
        return int(self.action_mask_BT.sum())


def tensors_of(rollout: Rollout, device: torch.device, first: int = 0) -> Experience:
    """Turns a rollout into padded tensors; episodes that are not kept get an empty mask.

    Args:
        rollout: The episodes of all processes.
        device: Where the policy lives.
        first: The first of this process's episodes, of which decoding may have kept states.
    """
    masks = [
        [ok and is_action for is_action in mask]
        for ok, mask in zip(rollout.kept, rollout.action_mask, strict=True)
    ]
    action_mask_BT = pad_right(masks, value=False).to(device)
    zeros_BT = torch.zeros(action_mask_BT.shape, device=device)
    scores_BT = zeros_BT.clone()
    ends_BT = torch.zeros_like(action_mask_BT, dtype=torch.long)
    for i, turns in enumerate(rollout.turn_rewards):
        for position, reward in turns:
            scores_BT[i, position] += reward
            ends_BT[i, position] += 1
    known = [torch.tensor(row) for row in rollout.sampler_logprobs]
    return Experience(
        sequences=[
            torch.tensor(prompt + response, device=device)
            for prompt, response in zip(rollout.prompt_ids, rollout.response_ids, strict=True)
        ],
        prompt_lengths=[len(prompt) for prompt in rollout.prompt_ids],
        action_mask_BT=action_mask_BT,
        actions=[torch.tensor(mask).nonzero().flatten() for mask in masks],
        sampler_logprobs_BT=pad_right(known).to(device) if known else zeros_BT,
        sampler_is_known=bool(known),
        scores_BT=scores_BT,
        turn_BT=ends_BT.cumsum(1) - ends_BT,
        group_B=torch.tensor(rollout.groups, device=device),
        unfinished_B=torch.tensor(rollout.unfinished, device=device),
        old_logprobs_BT=zeros_BT.clone(),
        values_BT=zeros_BT.clone(),
        final_values_B=zeros_BT[:, 0].clone(),
        kept={} if any(rollout.unfinished) else dict(enumerate(rollout.states, start=first)),
    )


@torch.no_grad()
def trainer_pass(
    experience: Experience,
    trunk: Trunk,
    critic: Critic,
    reference: Reference | None,
    rows: Sequence[int],
    *,
    temperature: float,
    micro_batch: MicroBatch,
    autocast: Callable[[], AbstractContextManager[None]],
) -> float:
    """Fills in old log-probs, values, reference log-probs and the states at the cut.

    Args:
        experience: The episodes of all processes.
        trunk: The policy's trunk.
        critic: The critic.
        reference: The policy that the KL pulls towards, if there is one.
        rows: Episodes that this process passes over; the states at the cut are of these alone.
        temperature: Of the sampling.
        micro_batch: The most that one forward pass takes.
        autocast: Makes the context of a forward pass.

    Returns:
        Mean entropy of the policy over the action tokens (nats).
    """
    if reference is not None:
        experience.ref_logprobs_BT = torch.zeros_like(experience.old_logprobs_BT)
    prompts = zip(experience.sequences, experience.prompt_lengths, strict=True)
    common = common_prefix([ids[:length].tolist() for ids, length in prompts])
    experience.shared = common if trunk.can_share and common >= SHORTEST_SHARED_PREFIX else 0
    if experience.kept and trunk.num_frozen:
        _cut_kept_states(experience)
    entropies: list[Tensor] = []
    for batch in experience.micro_batches(experience.by_length(rows), micro_batch):
        packed, places = experience.pack(batch), experience.places(batch)
        with autocast():
            if experience.kept:
                states_NH, cut = _kept_states(experience, batch), experience.cut(batch)
            else:
                final_BSH, cut = trunk.full(packed.ids_BL, packed.shared)
                states_NH = packed.states(final_BSH)
                _final_values(experience, critic, batch, final_BSH, packed.ids_BL)
                _keep_cut(experience, batch, cut)
            logprobs_N, entropy_N = trunk.token_logprobs(states_NH, packed.tokens_N, temperature)
            values_N = critic(states_NH, packed.ids_BL, packed.row_N, packed.position_N)
            if reference is not None:
                assert experience.ref_logprobs_BT is not None
                with phase("reference"):
                    ref_N = reference.logprobs(packed, cut)
                experience.ref_logprobs_BT[places] = ref_N.float()
        experience.old_logprobs_BT[places] = logprobs_N.float()
        experience.values_BT[places] = values_N.float()
        entropies.append(entropy_N.sum())
    experience.kept = {}  # large, and not needed any more
    _take_from_others(experience)
    if not experience.sampler_is_known:
        experience.sampler_logprobs_BT = experience.old_logprobs_BT
    entropy_sum = sum(map(float, entropies))
    return sum(processes.gather(entropy_sum)) / max(experience.num_tokens, 1)


def _take_from_others(experience: Experience) -> None:
    """Fills in the rows of the other processes, which are 0 here as ours are there."""
    filled = [experience.old_logprobs_BT, experience.values_BT, experience.final_values_B]
    if experience.ref_logprobs_BT is not None:
        filled.append(experience.ref_logprobs_BT)
    processes.sum_(filled)


def _keep_cut(experience: Experience, rows: list[int], cut: CutStates | None) -> None:
    """Takes down the states at the cut of some rows."""
    if cut is None:
        return
    experience.shared_cut_1PH = cut.shared_1PH
    for place, i in enumerate(rows):
        own = len(experience.sequences[i]) - experience.shared
        experience.cut_states[i] = cut.own_BSH[place, :own].clone()


def _cut_kept_states(experience: Experience) -> None:
    """Takes the states at the cut from what decoding kept.

    They end one token earlier than those of a pass: nothing is predicted from the last one.
    """
    shared = experience.shared
    for i, states in experience.kept.items():
        assert states.entering_TH is not None, "decoding kept the states at the cut"
        own_SH = states.entering_TH[shared:]
        # A view would hold the shared states of every row in memory for the whole update.
        experience.cut_states[i] = own_SH.clone() if shared else own_SH
        if shared:
            experience.shared_cut_1PH = states.entering_TH[None, :shared]


def _kept_states(experience: Experience, rows: list[int]) -> Tensor:
    """The states that predicted the action tokens of some rows (N, H), as decoding kept them."""
    predicting = []
    for i in rows:
        final_TH = experience.kept[i].final_TH
        before_N = experience.prompt_lengths[i] - 1 + experience.actions[i]
        predicting.append(final_TH[before_N.to(final_TH.device)])
    return torch.cat(predicting)


def _final_values(
    experience: Experience, critic: Critic, rows: list[int], final_BSH: Tensor, ids_BL: Tensor
) -> None:
    """Values behind the last token of the episodes that the environment cut."""
    cut = [place for place, i in enumerate(rows) if experience.unfinished_B[i]]
    if not cut:
        return
    ends = [len(experience.sequences[rows[place]]) - 1 for place in cut]
    row_N, end_N = torch.tensor([cut, ends], device=ids_BL.device)
    values_N = critic(final_BSH[row_N, end_N - experience.shared], ids_BL, row_N, end_N)
    for place, value in zip(cut, values_N, strict=True):
        experience.final_values_B[rows[place]] = value


def minibatches(
    experience: Experience, rows: Sequence[int], num_mini_batches: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Yields the minibatches of one epoch: a fresh shuffle, cut equally, each by length.

    So episodes of similar length share a micro-batch: that saves padding and changes nothing,
    because every token has the same weight wherever it stands.

    Args:
        experience: The rollout.
        rows: Episodes that this process trains on.
        num_mini_batches: Must divide their number.
        generator: Source of the shuffle.
    """
    size = len(rows)
    order = torch.randperm(size, generator=generator).tolist()
    for start in range(0, size, size // num_mini_batches):
        yield experience.by_length(
            [rows[i] for i in order[start : start + size // num_mini_batches]]
        )


def _numbered(numbers: Iterable[int], positions: Sequence[Tensor]) -> Tensor:
    """Positions one after the other, below the number of what each belongs to: (2, N)."""
    own = [torch.full_like(part, n) for n, part in zip(numbers, positions, strict=True)]
    return torch.stack([torch.cat(own), torch.cat(list(positions))])
