"""``instructrec explain``: one episode, token by token, and word by word what earned its reward."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.envs.tasks.base import Instruction, default_rewards, make_task
from instructrec.errors import ConfigError, DataError, InstructRecError
from instructrec.experiments import evaluate_policy, explain_text, setup_run, telling
from instructrec.experiments.before_after import parents
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.explain_rewards import judges_of, scored, words
from instructrec.experiments.jsonl import Row, output_file, plain, write_atomic
from instructrec.experiments.runfolder import RunFolder
from instructrec.rewards.combine import CombinedReward, make_rewards
from instructrec.rewards.parts import RewardSpec

if TYPE_CHECKING:
    from instructrec.policies.causal_lm import CausalLMPolicy
    from instructrec.policies.critic import Critic
    from instructrec.rl.explaining import Reading


@dataclass(frozen=True)
class ExplainConfig:
    """Which episode is explained, and how (``instructrec explain``)."""

    prompt: str | None = None
    """An instruction of your own; it is judged by the rewards that need no column it lacks."""
    expected: str | None = None
    """The expected answer to that instruction: the column reference, where a reward needs it."""
    id: str | None = None
    """Id of an instruction of the task."""
    index: int = 0
    """Number of the instruction, where neither prompt nor id is given."""
    response: str | None = None
    """A response to explain; None takes what the policy answers."""
    task: str | None = None
    """Task; None takes that of the run, else closed_answers."""
    split: str | None = None
    """Split; None takes the test split."""
    rewards: dict[str, bool | float | str | RewardSpec] = field(default_factory=dict)
    """What judges the answer; none takes those of the run, else the task's own."""
    reference: str | None = None
    """Policy to hold it against; None takes what the run started from."""
    temperature: float = 0.0
    """Of the answer: 0 is greedy. Log-probs are those of temperature 1, or the run's."""
    alternatives: int = 3
    """Likeliest tokens shown in each place."""
    attribution: bool = True
    """Score the response without each of its words."""
    html: str | None = None
    """Write a page for the browser to this file."""
    json: str | None = None
    """Write everything to this file as JSON; - prints it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""

    def __post_init__(self) -> None:
        if self.prompt is not None and self.id is not None:
            raise ConfigError("prompt and id exclude each other: give one of them.")
        if self.expected is not None and self.prompt is None:
            raise ConfigError(
                f"expected = {self.expected!r} belongs to an instruction of your own: give "
                "--prompt, too. Those of a task have a reference."
            )
        if self.alternatives < 1 or self.index < 0:
            raise ConfigError(
                f"alternatives = {self.alternatives}, index = {self.index}: expected 1 or more, "
                "and 0 or more."
            )


def explain(policy: str, config: ExplainConfig, *, say: telling.Say = telling.say) -> Row:
    """Explains one episode of one answer.

    Args:
        policy: A run folder, a Hugging Face folder or hub id, or a model name.
        config: See `ExplainConfig`.
        say: Receives the report.

    Returns:
        ``policy, reference, id, prompt, response, total, parts, statuses, tokens, words, notes``;
        a token has ``token, logprob, reference, kl, entropy, value, advantage, top``.

    Raises:
        ConfigError: The policy has no weights, or an episode has several turns.
        DataError: The task has no such instruction.
        PolicyError: A policy cannot be loaded, or prompt and response do not fit.
    """
    if evaluate_policy.is_without_weights(policy):
        raise ConfigError(
            f"{policy!r} has no weights to look into: expected a run folder, a Hugging Face folder "
            "or hub id, or a model name."
        )
    from instructrec.policies.labels import writer

    for named in {config.json, config.html} - {None, "-"}:
        output_file(str(named))
    run = RunFolder.open(policy) if (Path(policy) / "run.json").is_file() else None
    asked = EvaluateConfig(
        task=config.task,
        split=config.split,
        rewards=config.rewards,
        temperature=config.temperature,
        device=config.device,
    )
    plan = evaluate_policy.make_plan(policy, asked, run)
    if plan.episodes.env != "instruction":
        raise ConfigError(
            f"an episode of this run has several turns ({plan.episodes.env}): explain takes single "
            "answers. Give another policy, or its model folder."
        )
    item, reward, notes = _episode(plan, config)
    answering: Any = evaluate_policy.load(policy, plan, asked)
    loaded = writer(answering, "an explanation of tokens")
    found = _explained(loaded, item, reward, plan, config, run)
    found = {"policy": policy, **found, "notes": [*found["notes"], *notes]}
    _tell(found, config, say)
    return found


def _episode(
    plan: evaluate_policy.Plan, config: ExplainConfig
) -> tuple[Instruction, CombinedReward | None, list[str]]:
    """The instruction, what judges its answer, and notes for people."""
    if config.prompt is not None:
        columns = {} if config.expected is None else {"reference": config.expected}
        own = Instruction("prompt", config.prompt, columns)
        return own, *judges_of(plan.rewards or {}, list(columns), named=bool(config.rewards))
    task = make_task(plan.task, split=plan.split, **plan.options)
    reward = make_rewards(default_rewards(task) if plan.rewards is None else plan.rewards)
    reward.check_columns(task.columns)
    if config.id is not None:
        found = next((task[i] for i in range(len(task)) if task[i].id == config.id), None)
        if found is None:
            raise DataError(
                f"{plan.task} ({plan.split}) has no instruction {config.id!r}: expected an id such "
                f"as {task[0].id!r}. --split chooses another split."
            )
        return found, reward, []
    if config.index >= len(task):
        raise DataError(
            f"index = {config.index}, but {plan.task} ({plan.split}) has {len(task)} instructions."
        )
    return task[config.index], reward, []


def _explained(
    policy: CausalLMPolicy,
    item: Instruction,
    reward: CombinedReward | None,
    plan: evaluate_policy.Plan,
    config: ExplainConfig,
    run: RunFolder | None,
) -> Row:
    from instructrec.rl.explaining import advantages_of, read_response

    settings = (run.config() if run is not None else {}).get("ppo", {})
    temperature = settings.get("temperature", 1.0)
    prompt_ids, response_ids, text = _answer(policy, item, config)
    start, notes = _start(policy, plan, config, run)
    critic = None
    if run is not None and start is not None and config.reference is None:
        critic, told = _critic(start, run, settings)
        notes += told

    def read(of: CausalLMPolicy, critic: Critic | None = None) -> Any:
        return read_response(
            of,
            prompt_ids,
            response_ids,
            temperature=temperature,
            alternatives=config.alternatives,
            critic=critic,
        )

    ours, theirs = read(policy, critic), read(start) if start is not None else None
    found = scored(reward, item, [text])[0] if reward is not None else {}
    credit = None
    if found.get("total") is not None and settings:
        pulled = theirs is not None and settings.get("kl_penalty") == "reward"
        credit = advantages_of(
            ours.logprobs,
            theirs.logprobs if pulled and theirs is not None else None,
            ours.values,
            found["total"],
            kl_coef=settings["kl_coef"],
            gamma=settings["gamma"],
            lam=settings["lam_policy"],
        )
    adds = words(reward, item, text) if reward is not None and config.attribution else []
    return {
        "reference": start.name if start is not None else None,
        "id": item.id,
        "prompt": item.prompt if isinstance(item.prompt, str) else list(item.prompt),
        "expected": item.columns.get("reference"),
        "response": text,
        **(found or {"total": None, "parts": {}, "statuses": {}}),
        "tokens": [
            _token(policy, ours, theirs, credit, t, token) for t, token in enumerate(response_ids)
        ],
        "words": adds,
        "notes": notes,
    }


def _token(
    policy: CausalLMPolicy,
    ours: Reading,
    theirs: Reading | None,
    credit: list[float] | None,
    t: int,
    token: int,
) -> Row:
    """One row of ``tokens``."""
    logprob = ours.logprobs[t]
    return {
        "id": token,
        "token": _piece(policy, token),
        "logprob": logprob,
        "reference": None if theirs is None else theirs.logprobs[t],
        "kl": None if theirs is None else logprob - theirs.logprobs[t],
        "entropy": ours.entropy[t],
        "value": None if ours.values is None else ours.values[t],
        "advantage": None if credit is None else credit[t],
        "top": [{"token": _piece(policy, i), "share": share} for i, share in ours.top[t]],
    }


def _answer(
    policy: CausalLMPolicy, item: Instruction, config: ExplainConfig
) -> tuple[list[int], list[int], str]:
    """Ids of the prompt and of the response, and the text of the response."""
    [prompt_ids] = policy.encode([item.prompt])
    if config.response is None:
        policy.sync()
        found = policy.respond_ids([prompt_ids])
        return prompt_ids, list(found.response_ids[0]), found.texts[0]
    ids = policy.tokenizer(config.response, add_special_tokens=False)["input_ids"]
    return prompt_ids, [*ids, policy.eos_token_ids[0]], config.response


def _piece(policy: CausalLMPolicy, token: int) -> str:
    """What a token writes."""
    return str(policy.tokenizer.decode([token]))


def _start(
    policy: CausalLMPolicy,
    plan: evaluate_policy.Plan,
    config: ExplainConfig,
    run: RunFolder | None,
) -> tuple[CausalLMPolicy | None, list[str]]:
    """The policy that it is held against, and notes for people."""
    from instructrec.policies.labels import writer

    name = config.reference
    if name is None and run is not None:
        above = parents(run.path, run.record())
        name = str(above[0]) if above else run.config().get("policy", {}).get("model")
    if name is None:
        return None, []
    try:
        model = setup_run.model_folder(name)
        known = replace(plan.policy, model=model)
        start = writer(setup_run.load(known, 0, policy.sampling), "a comparison of tokens")
    except (InstructRecError, OSError) as error:
        if config.reference is not None:
            raise
        return None, [f"what the run started from ({name}) cannot be loaded: {error}"]
    start.name = name
    return start, []


def _critic(
    start: CausalLMPolicy, run: RunFolder, settings: Row
) -> tuple[Critic | None, list[str]]:
    """The critic of the newest checkpoint, and notes for people."""
    from instructrec.policies.critic import make_critic
    from instructrec.rl.checkpoint import read_checkpoint, update_of
    from instructrec.rl.checkpoint_keeping import latest_checkpoint
    from instructrec.rl.trained import copy_into

    if settings.get("advantage") != "gae":
        return None, []
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return None, ["no values: the run keeps no checkpoint, and the critic lies there."]
    critic = make_critic(
        start,
        settings["critic"],
        detach=settings["critic_detach"],
        source=settings.get("critic_model"),
    )
    tensors = read_checkpoint(checkpoint).tensors
    saved = {k.removeprefix("critic."): v for k, v in tensors.items() if k.startswith("critic.")}
    copy_into(critic, saved)
    best, at = run.summary().get("best_update"), update_of(checkpoint)
    if best not in (None, at):
        return critic, [f"values: of the critic after update {at}; the policy is that of {best}."]
    return critic, []


def _tell(found: Row, config: ExplainConfig, say: telling.Say) -> None:
    """Prints and writes what was asked for."""
    if config.json == "-":
        say(json.dumps(plain(found), indent=2, ensure_ascii=False))
    else:
        say(explain_text.to_text(found))
    if config.json not in (None, "-"):
        content = json.dumps(plain(found), indent=2, ensure_ascii=False)
        write_atomic(Path(str(config.json)), content + "\n")
        say(f"written  {config.json}")
    if config.html is not None:
        write_atomic(Path(config.html), explain_text.page_of(found))
        say(f"written  {config.html}")
