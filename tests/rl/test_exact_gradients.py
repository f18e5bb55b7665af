"""The expected first-step gradient equals the exact gradient of the objective, by enumeration.

The policy is a table of logits on a language-model MDP that is small enough to write down whole:
four tokens, of which the last one ends a turn; a first turn of at most two tokens, one token of
the environment that depends on it, and a second turn of one token. Every path is a rollout of
probability p; the gradient that the trainer's own code gives for it, times p, is summed up.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from instructrec.policies.base import StopReason
from instructrec.rl.config import PPOConfig
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import tensors_of
from instructrec.rl.losses import LossBatch, LossSettings, ppo_loss
from instructrec.rl.rollout import Rollout
from instructrec.rl.turns import Episode, Turn

TOKENS, END, PROMPT = 4, 3, 9
PENALTY, KL_COEF = 0.7, 0.3
CONFIG = PPOConfig(kl_coef=KL_COEF, whiten_advantages="none", episodes_per_update=52)


@dataclasses.dataclass(frozen=True)
class Path:
    """One way through the MDP."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    turn_rewards: tuple[tuple[int, float], ...]
    cut: bool
    unfinished: bool = False


def environment_token(first_turn):
    return 10 + sum(first_turn) % 2


def all_paths():
    first_turns = [(END,)]
    first_turns += [(a, b) for a in range(END) for b in range(TOKENS)]
    for first, second in itertools.product(first_turns, range(TOKENS)):
        tokens = (*first, environment_token(first), second)
        mask = (True,) * len(first) + (False, True)
        one = 0.5 * first[0] - 0.25 * len(first)
        two = float(second == (first[0] + 1) % TOKENS)
        yield Path(tokens, mask, ((len(first) - 1, one), (len(tokens) - 1, two)), first[-1] != END)


def cut_short(path):
    """The path as the environment breaks it off behind the first turn."""
    (end, reward), _ = path.turn_rewards
    return Path(path.tokens[: end + 1], path.mask[: end + 1], ((end, reward),), path.cut, True)


PATHS = list(all_paths())
CUT_SHORT = list(dict.fromkeys(cut_short(path) if path.tokens[0] == 0 else path for path in PATHS))
"""The paths of an environment that breaks off behind first turns that begin with token 0."""
STATES = sorted({p.tokens[:t] for p in PATHS for t in range(len(p.tokens)) if p.mask[t]})


def table(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(STATES), TOKENS, generator=generator, dtype=torch.float64)


def path_logprobs(logits, path):
    """Log-probs of a path's tokens (T,), 0 where the environment wrote."""
    logprobs = logits.log_softmax(-1)
    return torch.stack(
        [
            logprobs[STATES.index(path.tokens[:t]), path.tokens[t]]
            if path.mask[t]
            else logits.new_zeros(())
            for t in range(len(path.tokens))
        ]
    )


def played(path):
    """The path as an episode, whose first answer alone may be cut."""
    episode = Episode("")
    for number, (end, reward) in enumerate(path.turn_rewards):
        reason = StopReason.LENGTH if path.cut and number == 0 else StopReason.EOS
        episode.turns.append(Turn("", [], [], reason, reward=reward))
        episode.ends.append(end)
    return episode


def beyond(path):
    """What the critic says of the state in which the environment broke off."""
    return 0.4 + 0.3 * path.tokens[-1] if path.unfinished else 0.0


def rollout(paths, config):
    cut = [path.cut for path in paths]
    kept = [not (config.on_length == "mask" and is_cut) for is_cut in cut]
    penalty = config.missing_eos_penalty or 0.0
    return Rollout(
        instruction_ids=[str(i) for i in range(len(paths))],
        prompts=[""] * len(paths),
        texts=[""] * len(paths),
        prompt_ids=[[PROMPT]] * len(paths),
        response_ids=[list(path.tokens) for path in paths],
        action_mask=[list(path.mask) for path in paths],
        sampler_logprobs=[[0.0] * len(path.tokens) for path in paths],
        turn_rewards=[played(path).paid(penalty) for path in paths],
        stop_reasons=[StopReason.EOS] * len(paths),
        scored=[True] * len(paths),
        groups=[i // config.num_generations for i in range(len(paths))],
        unfinished=[path.unfinished for path in paths],
        kept=kept,
    )


def trainer_gradient(config, logits, reference, paths=PATHS, weights=None, values=None):
    """Sum over paths of weight times the gradient of the trainer's loss, negated: uphill."""
    experience = tensors_of(rollout(paths, config), torch.device("cpu"))
    for field in (
        "scores_BT",
        "sampler_logprobs_BT",
        "old_logprobs_BT",
        "values_BT",
        "final_values_B",
    ):
        setattr(experience, field, getattr(experience, field).double())
    rows = [path_logprobs(logits, path) for path in paths]
    pad = torch.nn.utils.rnn.pad_sequence
    experience.old_logprobs_BT = pad([row.detach() for row in rows], batch_first=True)
    experience.sampler_logprobs_BT = experience.old_logprobs_BT.clone()
    if config.kl_coef:
        refs = [path_logprobs(reference, path) for path in paths]
        experience.ref_logprobs_BT = pad(refs, batch_first=True)
    if values is not None:
        experience.values_BT = torch.where(experience.action_mask_BT, values, 0.0)
    experience.final_values_B = torch.tensor([beyond(path) for path in paths]).double()
    metrics = estimate_advantages(experience, config, config.kl_coef)
    if weights is None:
        weights = torch.stack([row.detach().sum().exp() for row in rows])
    settings = LossSettings(
        0.2, 0.28, None, vf_coef=0.0, kl_coef=config.kl_coef if config.kl_penalty == "loss" else 0.0
    )
    total = logits.new_zeros(())
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        mask = experience.action_mask_BT[i, : len(row)]
        batch = LossBatch(
            old_logprobs=row.detach(),
            advantages=experience.advantages_BT[i, : len(row)],
            old_values=torch.zeros_like(row),
            returns=torch.zeros_like(row),
            action_mask=mask,
            ref_logprobs=None if not config.kl_coef else experience.ref_logprobs_BT[i, : len(row)],
        )
        loss, _ = ppo_loss(batch, row, torch.zeros_like(row), torch.zeros_like(row), settings, 1.0)
        total = total - weight * loss
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient, metrics


def exact_gradient(config, logits, reference, paths=PATHS, bootstrapped=False):
    """Gradient of E[rewards - penalty - KL(path)], over the paths that count.

    What lies behind an episode that the environment cut is what the critic says, or nothing.
    """
    objective = logits.new_zeros(())
    penalty = config.missing_eos_penalty or 0.0
    for path in paths:
        if config.on_length == "mask" and path.cut:
            continue
        logprob = path_logprobs(logits, path).sum()
        score = rest(path, 0) - (0.0 if bootstrapped else beyond(path)) - penalty * path.cut
        divergence = logprob - path_logprobs(reference, path).sum()
        objective = objective + logprob.exp() * (score - config.kl_coef * divergence)
    (gradient,) = torch.autograd.grad(objective, logits)
    return gradient


def good_values(paths=PATHS, penalty=0.0):
    """Values that explain something: the mean of what is to come on the paths through a state."""
    length = max(len(path.tokens) for path in paths)
    values = torch.zeros(len(paths), length, dtype=torch.float64)
    for i, path in enumerate(paths):
        for t in range(len(path.tokens)):
            same = [other for other in paths if other.tokens[:t] == path.tokens[:t]]
            values[i, t] = sum(rest(other, t, penalty) for other in same) / len(same)
    return values


def rest(path, t, penalty=0.0):
    """Rewards of a path from position t on, and what lies behind it."""
    paid = played(path).paid(penalty)
    return sum(reward for at, reward in paid if at >= t) + beyond(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_coef": 0.0},
        {},
        {"on_length": "penalty", "missing_eos_penalty": PENALTY},
        {"gae_level": "turn"},
        {"gae_level": "turn", "on_length": "penalty", "missing_eos_penalty": PENALTY},
    ],
    ids=["rewards", "KL in the reward", "penalty", "turns", "turns and penalty"],
)
@pytest.mark.parametrize("baseline", ["batch_mean", "critic"])
def test_the_expected_gradient_is_that_of_the_objective(changes, baseline):
    config = dataclasses.replace(CONFIG, **changes)
    logits, reference = table(1).requires_grad_(), table(2)
    values = None
    if baseline == "critic":
        values = good_values(penalty=config.missing_eos_penalty or 0.0)
    else:
        config = dataclasses.replace(config, advantage="batch_mean")
    gradient, metrics = trainer_gradient(config, logits, reference, values=values)
    assert metrics["ppo/critic_used"] == float(baseline == "critic")
    expected = exact_gradient(config, logits, reference)
    assert expected.abs().max() > 0.02
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", ["token", "turn"])
@pytest.mark.parametrize("baseline", ["batch_mean", "critic"])
def test_what_the_environment_cuts_is_worth_what_the_critic_says(level, baseline):
    """And nothing without a critic; a response cut by its length is no such episode."""
    config = dataclasses.replace(
        CONFIG, gae_level=level, on_length="penalty", missing_eos_penalty=PENALTY
    )
    logits, reference = table(1).requires_grad_(), table(2)
    values = good_values(CUT_SHORT, PENALTY) if baseline == "critic" else None
    if values is None:
        config = dataclasses.replace(config, advantage="batch_mean")
    gradient, metrics = trainer_gradient(config, logits, reference, CUT_SHORT, values=values)
    assert metrics["ppo/critic_used"] == float(baseline == "critic")
    exact = [
        exact_gradient(config, logits, reference, CUT_SHORT, bootstrapped)
        for bootstrapped in (False, True)
    ]
    assert (exact[0] - exact[1]).abs().max() > 0.01
    torch.testing.assert_close(gradient, exact[baseline == "critic"], atol=1e-6, rtol=0)


def test_an_idle_critic_has_no_say_in_unfinished_episodes():
    experience = tensors_of(rollout(PATHS, CONFIG), torch.device("cpu"))
    for advantage in ("batch_mean", "gae"):
        experience.final_values_B = torch.full_like(experience.final_values_B, 100.0)
        config = dataclasses.replace(CONFIG, kl_coef=0.0, advantage=advantage)
        metrics = estimate_advantages(experience, config, 0.0)
        assert metrics["ppo/critic_used"] == 0.0
        assert experience.advantages_BT.abs().max() < 3.0


def test_left_out_paths_count_as_nothing():
    config = dataclasses.replace(CONFIG, on_length="mask", kl_coef=0.0, advantage="batch_mean")
    logits, reference = table(1).requires_grad_(), table(2)
    gradient, _ = trainer_gradient(config, logits, reference)
    # A constant baseline no longer cancels where only some of a state's paths count: take it out.
    kept = [path for path in PATHS if not path.cut]
    tokens = sum(sum(path.mask) for path in kept)
    returns = sum(
        sum(
            sum(r for at, r in path.turn_rewards if at >= t)
            for t in range(len(path.mask))
            if path.mask[t]
        )
        for path in kept
    )
    shift = logits.new_zeros(())
    for path in kept:
        logprob = path_logprobs(logits, path).sum()
        shift = shift + logprob.detach().exp() * logprob * (returns / tokens)
    expected = exact_gradient(config, logits, reference) - torch.autograd.grad(shift, logits)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_leave_one_out_has_the_exact_gradient_as_well():
    config = dataclasses.replace(CONFIG, advantage="rloo", num_generations=2)
    logits, reference = table(1).requires_grad_(), table(2)
    pairs = list(itertools.product(PATHS, PATHS))
    flat = [path for pair in pairs for path in pair]
    probability = {path: path_logprobs(logits.detach(), path).sum().exp() for path in PATHS}
    weights = torch.stack([probability[a] * probability[b] for a, b in pairs])
    gradient, _ = trainer_gradient(
        config, logits, reference, flat, weights.repeat_interleave(2) / 2
    )
    expected = exact_gradient(config, logits, reference)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_the_kl_loss_is_exact_in_every_state_and_leaves_the_visits_alone():
    config = dataclasses.replace(CONFIG, kl_penalty="loss", advantage="batch_mean")
    logits, reference = table(1).requires_grad_(), table(2)
    gradient, _ = trainer_gradient(config, logits, reference)
    expected = exact_gradient(dataclasses.replace(CONFIG, kl_coef=0.0), logits, reference)
    logprobs, ref_logprobs = logits.log_softmax(-1), reference.log_softmax(-1)
    divergence = (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)
    visits = torch.zeros(len(STATES), dtype=torch.float64)
    for path in PATHS:
        probability = path_logprobs(logits.detach(), path).sum().exp()
        for t in range(len(path.tokens)):
            if path.mask[t]:
                visits[STATES.index(path.tokens[:t])] += probability
    expected = expected - KL_COEF * torch.autograd.grad((visits * divergence).sum(), logits)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_k3_in_the_reward_would_not_regularise():
    logits, reference = table(1).requires_grad_(), table(1) + 0.1 * table(2)
    k1_gradient = torch.zeros_like(logits)
    k3_gradient = torch.zeros_like(logits)
    for path in PATHS:
        row, ref = path_logprobs(logits, path), path_logprobs(reference, path)
        difference = (row - ref).detach()
        k3 = torch.expm1(-difference) + difference
        (score,) = torch.autograd.grad(row.sum(), logits)
        weight = row.detach().sum().exp()
        k1_gradient += weight * difference.sum() * score
        k3_gradient += weight * k3.sum() * score
    cosine = torch.cosine_similarity(k1_gradient.flatten(), k3_gradient.flatten(), dim=0)
    assert cosine < 0.1
