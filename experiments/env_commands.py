"""``instructrec envs list | show | play``: what an environment asks, and what answers earn."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from instructrec.errors import ConfigError, PolicyError, RewardError, unknown_name

if TYPE_CHECKING:
    from gymnasium import Env
    from jsonargparse import ArgumentParser, Namespace

GUESSES = 64
"""Instructions among whose references a random answer is drawn."""
MOST_NUMBERS = 16
"""Up to so many actions that are numbers, each of them is shown."""
_NAMESPACE = "instructrec/"


def build(parser: ArgumentParser) -> None:
    """Adds the three commands to the parser of ``instructrec envs``."""
    from instructrec.experiments import command_line

    def add(name: str, text: str) -> ArgumentParser:
        made = command_line.make_parser(f"instructrec envs {name}", text)
        commands.add_subcommand(name, made, help=text)
        return made

    def add_environment(made: ArgumentParser) -> None:
        made.add_argument("id", help="Such as instructrec/Parity-v0, or Parity.")
        made.add_argument(
            "--task", type=str, help="A task's name, a data file, module:factory, file.py:factory."
        )
        made.add_argument("--split", type=str, default="train", help="train, validation or test.")
        made.add_argument("--seed", type=int, default=0, help="Chooses the instructions.")
        made.add_argument(
            "--options",
            type=dict[str, Any],
            default={},
            help="Other arguments of the environment, e.g. --options.reward bleu.",
        )

    commands = parser.add_subcommands(required=True, dest="action")
    add("list", "List the registered environments.").add_argument(
        "--json", action="store_true", help="Print JSON."
    )
    show = add("show", "Show an instruction, and what scripted answers to it earn.")
    add_environment(show)
    show.add_argument("--index", type=int, help="Number of the instruction instead of a drawn one.")
    show.add_argument("--json", action="store_true", help="Print JSON.")
    play = add("play", "Be the policy: answer instructions and see every part of the reward.")
    add_environment(play)
    play.add_argument("--episodes", type=int, help="End after so many; else with the input.")


def run(values: Namespace, command: list[str]) -> None:
    """Runs one of them.

    Raises:
        ConfigError: An id, argument or option is wrong.
        DataError: The task's data cannot be used.
    """
    {"list": _list, "show": _show, "play": _play}[values.action](values[values.action])


def make(values: Namespace) -> Env[Any, Any]:
    """Makes the environment that a command line asks for.

    Raises:
        ConfigError: The id is unknown, or an argument is wrong.
        DataError: The task's data cannot be used.
    """
    import gymnasium as gym

    import instructrec.envs  # noqa: F401 (registers them)

    known = {_short(name): name for name in gym.registry if name.startswith(_NAMESPACE)}
    name = values.id if values.id in gym.registry else known.get(_short(values.id), values.id)
    if name not in gym.registry and ":" not in name:  # module:id is imported by gym.make
        raise ConfigError(unknown_name("environment", _short(values.id), known))
    options = {**values.options, "split": values.split}
    if values.task is not None:
        options["task"] = values.task
    try:
        env = gym.make(name, disable_env_checker=True, **options)
    except (TypeError, ImportError, gym.error.Error) as error:
        arguments = _arguments(name)
        for option in options:
            if isinstance(error, TypeError) and arguments and option not in arguments:
                wrong = unknown_name("option", option, arguments)
                raise ConfigError(f"{name}: {wrong}") from error
        why = str(error).partition(" was raised from the environment creator")[0]
        raise ConfigError(f"{name} cannot be made: {why}") from error
    return env.unwrapped


def _arguments(name: str) -> set[str]:
    """What an environment is made with; nothing where that cannot be told."""
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    entry = gym.spec(name).entry_point
    made = load_env_creator(entry) if isinstance(entry, str) else entry
    found: set[str] = set()
    # Arguments that a class passes on are those of the class behind it.
    classes: tuple[type, ...] = made.__mro__ if isinstance(made, type) else ()
    for each in classes:
        parameters = inspect.signature(each).parameters.values()
        found |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return found
    return set()


def _short(name: str) -> str:
    """``Parity`` for ``instructrec/Parity-v0``."""
    return name.removeprefix(_NAMESPACE).partition("-v")[0]


def told(env: Any, info: Mapping[str, Any]) -> str:
    """What a reset tells, in words: which instruction it is."""
    if "task_index" not in info:
        return ", ".join(f"{name} {value}" for name, value in info.items())
    return f"instruction {info['task_index']} of {len(env.task)}, id {info['instruction_id']}"


def shown(observation: Any) -> str:
    """An observation as lines for a terminal; what cannot be seen is written out."""
    from instructrec.envs.tasks.base import render_prompt
    from instructrec.envs.tasks.rows import visible

    if isinstance(observation, tuple) and all(isinstance(m, Mapping) for m in observation):
        observation = render_prompt(observation)
    text = observation if isinstance(observation, str) else repr(observation)
    return "\n".join(visible(line) for line in text.split("\n"))


def described(env: Any) -> list[tuple[str, str]]:
    """Facts about an environment: its task, its reward and its actions."""
    from gymnasium.spaces import Text

    facts = []
    if (task := getattr(env, "task", None)) is not None:
        facts.append(("task", f"{task.name}, {task.split}: {len(task)} instructions"))
    if (reward := getattr(env, "reward", None)) is not None:
        facts.append(("reward", reward.describe()))
    actions = repr(env.action_space)
    if isinstance(env.action_space, Text):
        actions = f"text, at most {env.action_space.max_length:,} characters"
    return [*facts, ("actions", actions)]


def _list(values: Namespace) -> None:
    from instructrec.experiments import listing

    if not values.json:
        print(listing.environments())
        return
    found = [{"id": spec.id, "arguments": spec.kwargs} for spec in listing.environment_specs()]
    print(json.dumps(found, indent=2))


def _show(values: Namespace) -> None:
    from instructrec.experiments.listing import table

    env = make(values)
    options = None if values.index is None else {"index": values.index}
    observation, info = env.reset(seed=values.seed, options=options)
    columns = dict(env.instruction.columns) if hasattr(env, "instruction") else {}
    again = {"index": info["task_index"]} if "task_index" in info else None
    rows = []
    for name, action in _answers(env, values.seed).items():
        env.reset(seed=values.seed, options=again)
        rows.append(_answered(env, name, action))
    if values.json:
        found = {"id": env.spec.id if env.spec else values.id, **info, "observation": observation}
        print(json.dumps({**found, "columns": columns, "answers": rows}, indent=2, default=str))
        return
    parts = list(dict.fromkeys(name for row in rows for name in row["parts"]))
    header = ("answer", "return", "turns", "status", *parts, "text")
    print(table(described(env)))
    print(f"\n[{told(env, info)}]\n\n{shown(observation)}\n")
    for name, value in columns.items():
        print(f"{name} = {shown(repr(value))}")
    print("\n" + table([header, *(_cells(row, parts) for row in rows)]))
    for row in rows:
        if "error" in row:
            print(f"\n{row['answer']}: {row['error']}")


def _cells(row: Mapping[str, Any], parts: list[str]) -> tuple[str, ...]:
    from instructrec.envs.tasks.rows import excerpt

    scores = [f"{row['parts'][name]:.3f}" if name in row["parts"] else "-" for name in parts]
    total = "-" if row["return"] is None else f"{row['return']:.3f}"
    text = excerpt(str(row.get("response", row["action"])), 40)
    return (row["answer"], total, str(row["turns"]), row["status"], *scores, text)


def _answers(env: Any, seed: int) -> dict[str, Any]:
    """Scripted answers to the instruction shown, those that make sense here."""
    from gymnasium.spaces import Discrete, Text

    if not isinstance(env.action_space, Text):
        space, listed = env.action_space, {}
        if isinstance(space, Discrete) and space.n <= MOST_NUMBERS:
            numbers = range(int(space.start), int(space.start + space.n))
            listed = {f"number {number}": number for number in numbers}
        space.seed(seed)
        return {**listed, "random": space.sample()}
    from instructrec.policies.scripted import OraclePolicy, RandomPolicy

    item, task, found = env.instruction, env.task, {}
    with contextlib.suppress(PolicyError):  # without a reference nothing is known to be right
        columns = {name: [value] for name, value in item.columns.items()}
        found["oracle"] = OraclePolicy().respond([item.prompt], columns).texts[0]
    others = range(0, len(task), max(1, len(task) // GUESSES))
    guesses = {"reference": [task[i].columns.get("reference") for i in others]}
    random = RandomPolicy(seed).respond([item.prompt], guesses).texts[0]
    return {**found, "empty": "", "random": random}


def _answered(env: Any, name: str, action: Any) -> dict[str, Any]:
    """Plays an episode that has begun with one answer, given again in every turn."""
    row: dict[str, Any] = {"answer": name, "action": action, "return": 0.0, "turns": 0}
    row |= {"status": "failed", "parts": {}}
    over = False
    try:
        while not over:
            _, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            row["return"] += reward
            row["turns"] += 1
            row["status"] = info.get("reward_status", "scored")
            row["parts"] = info.get("reward_parts", {})
            if "response" in info:  # the text that a number stands for
                row["response"] = info["response"]
    except RewardError as error:
        row |= {"status": "failed", "return": None, "error": str(error)}
    if row["return"] is not None and math.isnan(row["return"]):  # no reward applies
        row["return"] = None
    return row


def _play(values: Namespace) -> None:
    from instructrec.experiments.env_play import play

    if values.episodes is not None and values.episodes < 1:
        raise ConfigError(f"episodes = {values.episodes}: expected 1 or more.")
    play(make(values), seed=values.seed, episodes=values.episodes, source=sys.stdin)
