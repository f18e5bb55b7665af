"""The learner's gradient equals that of the definitions, worked out token by token.

Nothing is shared with the trainer but the model: no packing, no micro-batches, no common prefix, no
states of frozen layers, no tensors over episodes. The episodes have several turns with words of the
environment in between, one has no reward, some are cut by the environment, and the sampler is not
quite the policy. The policy has moved since the reference, and again since the rollout.
"""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from instructrec.policies.base import StopReason
from instructrec.policies.config import LoraSettings
from instructrec.rl.config import PPOConfig
from instructrec.rl.learner import PPOLearner
from instructrec.rl.rollout import Rollout

SIZE, LEFT_OUT = 8, 2


def make_rollout(num_generations):
    """Random episodes of one to three turns behind a long common opening."""
    draw = random.Random(0)
    opening = [draw.randrange(256) for _ in range(40)]
    prompts, responses, masks, paid = [], [], [], []
    for _ in range(SIZE):
        prompts.append(opening + [draw.randrange(256) for _ in range(draw.randrange(1, 6))])
        mask, rewards = [], []
        for turn in range(draw.randrange(1, 4)):
            mask += [False] * (draw.randrange(1, 5) if turn else 0)
            mask += [True] * draw.randrange(1, 6)
            rewards.append((len(mask) - 1, draw.uniform(-1, 1)))
        responses.append([draw.randrange(256) for _ in mask])
        masks.append(mask)
        paid.append(rewards)
    kept = [i != LEFT_OUT for i in range(SIZE)]
    return Rollout(
        instruction_ids=[str(i) for i in range(SIZE)],
        prompts=[""] * SIZE,
        texts=[""] * SIZE,
        prompt_ids=prompts,
        response_ids=responses,
        action_mask=masks,
        sampler_logprobs=[],
        turn_rewards=[turns if ok else [] for turns, ok in zip(paid, kept, strict=True)],
        stop_reasons=[StopReason.EOS] * SIZE,
        scored=kept,
        groups=[i // num_generations for i in range(SIZE)],
        unfinished=[draw.random() < 0.3 for _ in range(SIZE)],
        kept=kept,
    )


class ByDefinition:
    """One update, worked out slowly."""

    def __init__(self, learner, rollout):
        self.learner, self.config, self.rollout = learner, learner.config, rollout
        self.steps = [
            [t for t, own in enumerate(mask) if own and kept]
            for mask, kept in zip(rollout.action_mask, rollout.kept, strict=True)
        ]
        """Tokens of the policy in each episode that counts."""
        self.tokens = sum(map(len, self.steps))

    def read(self, model, i):
        """Log-probs, entropies and values of a response's tokens, and the value behind them."""
        prompt, response = self.rollout.prompt_ids[i], self.rollout.response_ids[i]
        ids = torch.tensor([prompt + response])
        out = model(ids, output_hidden_states=True, use_cache=False)
        before = slice(len(prompt) - 1, -1)
        logprobs = (out.logits[0, before] / self.config.temperature).log_softmax(-1)
        states, critic = out.hidden_states[-1][0], self.learner.critic
        if self.config.critic == "separate":
            states = critic.backbone(ids, use_cache=False).last_hidden_state[0]
        elif self.config.critic_detach:
            states = states.detach()
        values = critic.head.linear(states).squeeze(-1)
        chosen = logprobs[range(len(response)), response]
        return chosen, -(logprobs.exp() * logprobs).sum(-1), values[before], values[-1]

    def begin(self, reference):
        """Notes what is known before the first step."""
        with torch.no_grad():
            now = [self.read(self.learner.policy.model, i) for i in range(SIZE)]
            self.old = [row[0].tolist() for row in now]
            self.values = [row[2].tolist() for row in now]
            self.behind = [
                float(row[3]) * cut for row, cut in zip(now, self.rollout.unfinished, strict=True)
            ]
            self.reference = [self.read(reference, i)[0].tolist() for i in range(SIZE)]
        draw = random.Random(1)
        self.rollout.sampler_logprobs = [[x + draw.gauss(0, 0.3) for x in row] for row in self.old]

    def rewards(self, i):
        """Reward of each token of the policy."""
        paid, config = dict(self.rollout.turn_rewards[i]), self.config
        coef = config.kl_coef if config.kl_penalty == "reward" else 0.0
        kl = {t: self.old[i][t] - self.reference[i][t] for t in self.steps[i]}
        return {t: paid.get(t, 0.0) - coef * kl[t] for t in self.steps[i]}

    def parts(self, i):
        """The steps of an episode, each as its tokens."""
        if self.config.gae_level == "token":
            return [[t] for t in self.steps[i]]
        found, ends = [[]], [end for end, _ in self.rollout.turn_rewards[i]]
        for t in self.steps[i]:
            found[-1].append(t)
            found += [[]] if t in ends else []
        return found[:-1]

    def generalised(self, lam, *, uses_critic):
        """Advantage and return of each token, by episode."""
        gamma, result = self.config.gamma, []
        for i in range(SIZE):
            value, trace = self.behind[i] if uses_critic else 0.0, 0.0
            rewards, found = self.rewards(i), {}
            for part in reversed(self.parts(i)):
                here = self.values[i][part[0]] if uses_critic else 0.0
                trace = sum(rewards[t] for t in part) + gamma * value - here + gamma * lam * trace
                value = here
                found |= dict.fromkeys(part, (trace, trace + here))
            result.append(found)
        return result

    def estimate(self):
        """Advantages as the loss sees them, and the targets of the values."""
        config, everything = self.config, [(i, t) for i in range(SIZE) for t in self.steps[i]]
        returns = self.generalised(1.0, uses_critic=False)
        self.targets = {(i, t): returns[i][t][1] for i, t in everything}
        if self.uses_critic:
            found = self.generalised(config.lam_policy, uses_critic=True)
            advantages = {(i, t): found[i][t][0] for i, t in everything}
            found = self.generalised(config.lam_value, uses_critic=True)
            self.targets = {(i, t): found[i][t][1] for i, t in everything}
        elif config.num_generations == 1:
            mean = statistics.fmean(self.targets.values())
            advantages = {place: x - mean for place, x in self.targets.items()}
        else:
            advantages = self.within_groups(returns)
        if config.whiten_advantages != "none":
            centred = config.whiten_advantages == "whiten"
            mean = statistics.fmean(advantages.values()) if centred else 0.0
            rms = math.sqrt(statistics.fmean((x - mean) ** 2 for x in advantages.values()))
            scale = max(rms, config.advantage_std_floor)
            advantages = {place: (x - mean) / scale for place, x in advantages.items()}
        sampled = self.rollout.sampler_logprobs
        weights = {p: math.exp(self.old[p[0]][p[1]] - sampled[p[0]][p[1]]) for p in everything}
        self.advantages = {
            p: x * min(weights[p], config.importance_cap) for p, x in advantages.items()
        }

    def within_groups(self, returns):
        """Advantages against the other answers to an instruction."""
        config, groups = self.config, self.rollout.groups
        whole = {i: returns[i][steps[0]][1] for i, steps in enumerate(self.steps) if steps}
        advantages = {}
        for i in whole:
            others = [whole[j] for j in whole if groups[j] == groups[i] and j != i]
            group = [*others, whole[i]]
            for t in self.steps[i]:
                advantages[i, t] = 0.0
                if config.advantage == "rloo" and others:
                    advantages[i, t] = returns[i][t][1] - statistics.fmean(others)
                elif others:
                    spread = max(statistics.stdev(group), config.advantage_std_floor) + 1e-4
                    advantages[i, t] = (returns[i][t][1] - statistics.fmean(group)) / spread
        return advantages

    def loss(self):
        """The loss of the whole rollout as one minibatch."""
        config, total = self.config, torch.zeros(())
        for i in range(SIZE):
            logprobs, entropy, values, _ = self.read(self.learner.policy.model, i)
            for t in self.steps[i]:
                ratio = (logprobs[t] - self.old[i][t]).exp()
                advantage, before = self.advantages[i, t], self.values[i][t]
                low, high = 1 - config.cliprange, 1 + config.cliprange_high
                gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
                if config.dual_clip and advantage < 0:
                    gain = gain.clamp(min=config.dual_clip * advantage)
                error = (values[t] - self.targets[i, t]) ** 2
                if config.cliprange_value:
                    change = (values[t] - before).clamp(
                        -config.cliprange_value, config.cliprange_value
                    )
                    error = torch.maximum(error, (before + change - self.targets[i, t]) ** 2)
                total = total - gain + config.vf_coef * error / 2 - config.entropy_coef * entropy[t]
                if config.kl_penalty == "loss":
                    far = logprobs[t] - self.reference[i][t]
                    total = total + config.kl_coef * far**2 / 2
        return total / self.tokens


def move(weights, seed, size):
    """Moves weights by noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight += size * torch.randn(weight.shape, generator=generator)


POLICIES = {
    "full": {},
    "last_layers": {"train": "last_layers", "num_layers": 1},
    "lora": {"train": "lora", "lora": LoraSettings(r=4)},
}
SETTINGS = {
    "shared": {"critic_detach": False, "whiten_advantages": "none", "cliprange_value": 0.02},
    "turns": {"gae_level": "turn", "gamma": 0.9, "lam_policy": 0.9, "lam_value": 0.8},
    "separate": {"critic": "separate", "lam_policy": 0.95, "dual_clip": 1.5, "entropy_coef": 0.1},
    "loss": {"advantage": "batch_mean", "kl_penalty": "loss", "whiten_advantages": "whiten"},
    "rloo": {"advantage": "rloo", "num_generations": 4, "gamma": 0.95, "gae_level": "turn"},
    "group": {"advantage": "group", "num_generations": 2, "gamma": 0.95},
}


@pytest.mark.parametrize("trains", POLICIES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_gradient_is_that_of_the_definitions(toy, trains, settings):
    config = PPOConfig(
        **{"episodes_per_update": SIZE, "num_mini_batches": 1, "micro_batch_size": 4},
        **{"temperature": 0.7, "kl_coef": 0.3},
        **SETTINGS[settings],
    )
    policy, reference = (toy.policy(**POLICIES[trains]) for _ in range(2))
    learner = PPOLearner(policy, config)
    trained, critic = learner.trained_parameters()
    move([*trained, *critic], seed=2, size=0.02)
    head = learner.critic.head.linear
    slow = ByDefinition(learner, make_rollout(config.num_generations))
    slow.begin(reference.model)
    returns = [g for row in slow.generalised(1.0, uses_critic=False) for _, g in row.values()]
    torch.nn.init.constant_(head.bias, statistics.fmean(returns))
    for seed in range(50):  # until the critic knows more than that, by chance
        torch.nn.init.zeros_(head.weight)
        move([head.weight], seed, size=0.003)
        slow.begin(reference.model)
        learner._begin(slow.rollout)
        learner._pass_over()
        slow.uses_critic = learner.estimate()["ppo/critic_used"] == 1
        if slow.uses_critic or config.advantage != "gae":
            break
    assert slow.uses_critic == (config.advantage == "gae")
    slow.estimate()
    learner.normaliser = learner.weighted_tokens()
    move([*trained, *critic], seed=3, size=0.01)  # so that ratios differ from 1
    learner._gradient(learner.experience.by_length(range(SIZE)), learner.memory.most)
    weights = {n: w for n, w in learner.trained_weights().items() if w.grad is not None}
    expected = torch.autograd.grad(slow.loss(), list(weights.values()), allow_unused=True)
    assert max(g.abs().max() for g in expected if g is not None) > 0.01
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        told = f"gradient of {name}"
        zero = torch.zeros_like(weight) if gradient is None else gradient
        torch.testing.assert_close(weight.grad, zero, atol=2e-6, rtol=1e-4, msg=told)
