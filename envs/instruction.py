"""Instruction in, response out, rewarded at once: the single-turn environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from instructrec.envs import episode
from instructrec.envs.episode import RewardLike, TaskLike
from instructrec.envs.spaces import DEFAULT_MAX_LENGTH, UnicodeText
from instructrec.envs.tasks.base import Instruction, check_index
from instructrec.errors import ConfigError, RewardError
from instructrec.rewards.base import RewardBatch


class InstructionEnv(gym.Env[str, str]):
    """An episode is one instruction and one response; it always ends ``terminated``.

    `reset` draws an instruction with the environment's own generator (with replacement), or shows
    the one that ``options={"index": i}`` names. `step` takes the response and returns an empty
    observation, the weighted reward, and in ``info``:

    * ``reward_parts``: raw score by part, floats only; a part that does not apply is absent;
    * ``reward_status``: ``"scored"`` or ``"not_applicable"`` (then the reward is NaN);
    * ``task_index``, ``instruction_id``; ``action_truncated`` when the response was cut.

    Args:
        task: A registered name, a data file, ``module:factory``, ``file.py:factory`` or a task.
        split: ``train`` (default), ``validation`` or ``test``.
        reward: A reward's name, a mapping of names to weights, a function, or ready rewards;
            None takes those of the task, which are exact match unless it says otherwise.
        task_options: Options for making the task.
        max_chars: Longest observation and action, in characters.
        render_mode: None or ``"ansi"``: `render` then returns the dialogue as text.

    Raises:
        ConfigError: An unknown task, split, reward or option.
        DataError: The task's data cannot be used or lacks a column that a reward needs.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 1}  # type: ignore[misc]
    told: ClassVar[tuple[str, ...]] = ()
    """Names of what `context` tells the rewards beside the task's columns."""

    def __init__(
        self,
        task: TaskLike = "closed_answers",
        *,
        split: str | None = None,
        reward: RewardLike | None = None,
        task_options: Mapping[str, Any] | None = None,
        max_chars: int = DEFAULT_MAX_LENGTH,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode is None or 'ansi', not {render_mode!r}")
        self.render_mode = render_mode
        self.task = episode.resolve_task(task, split, task_options)
        self.reward = episode.resolve_rewards(reward, self.task, self.told)
        self.observation_space = UnicodeText(max_chars)
        self.action_space = UnicodeText(max_chars)
        self._max_chars = max_chars
        self._index = 0
        self._instruction: Instruction | None = None
        self._over = False
        self._dialogue: list[str] = []

    @property
    def instruction(self) -> Instruction:
        """The instruction of the current episode.

        Raises:
            ResetNeeded: No episode has begun.
        """
        if self._instruction is None:
            raise ResetNeeded("call reset() first: no instruction is shown yet")
        return self._instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Shows an instruction.

        Args:
            seed: Restarts the environment's own generator; global generators are never touched.
            options: None, or ``{"index": i}`` to choose the instruction.

        Returns:
            The prompt as text, and an info with ``task_index`` and ``instruction_id``.

        Raises:
            ConfigError: Another option, or an index outside the task.
        """
        super().reset(seed=seed)
        check_reset_options(options, ("index",))
        index = (options or {}).get("index")
        self._index = draw_index(self.np_random, len(self.task)) if index is None else index
        self._index = check_task_index(self._index, len(self.task))
        self._instruction = self.task[self._index]
        self._over = False
        self._dialogue = []
        observation = episode.observe(self._instruction, self._max_chars)
        self.begin()
        return self.view(observation), episode.reset_info(self._index, self._instruction)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Rewards the response and ends the episode (unless a subclass goes on).

        Raises:
            RewardError: A part of the reward failed; the message says which and why.
            ResetNeeded: The episode is over, or none has begun.
        """
        instruction = self.instruction
        if self._over:
            raise ResetNeeded("the episode is over: call reset()")
        text, cut = episode.clean_action(action, self._max_chars)
        self.hear(text)
        batch = self._score(text)
        reward, message, more = self.judge(text, float(batch.total[0]))
        truncated = message is not None and self.cut()
        self._over = message is None or truncated
        self._dialogue.append(f"response: {text}")
        if message is not None:
            self._dialogue.append(f"environment: {message}")
        shown = episode.reset_info(self._index, instruction)
        info = episode.step_info(shown, batch, 0, cut) | more
        return self.view(message or ""), reward, message is None, truncated, info

    def render(self) -> str | None:
        """Returns the dialogue so far (``render_mode="ansi"``), else None."""
        if self.render_mode is None:
            return None
        shown = f"instruction: {episode.observe(self.instruction, self._max_chars)}"
        return "\n".join([shown, *self._dialogue])

    def begin(self) -> None:
        """Called when an episode begins; a subclass clears its state."""

    def hear(self, text: str) -> None:
        """Called with every response before it is scored; a subclass thinks of its reply."""

    def context(self) -> tuple[Instruction, dict[str, Any]]:
        """What the response is scored as an answer to, and what else rewards are told (`told`)."""
        return self.instruction, {}

    def judge(self, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Decides what a scored response does to the episode.

        Args:
            text: The response.
            total: The weighted reward of it; NaN when none applies.

        Returns:
            The step's reward; the next message, or None when the episode is over; and more
            entries for the info.
        """
        return total, None, {}

    def cut(self) -> bool:
        """Whether a budget ends (``truncated``) the episode that `judge` would have go on."""
        return False

    def view(self, message: str) -> Any:
        """The observation: the message itself, empty after the last response."""
        return message

    def _score(self, text: str) -> RewardBatch:
        """Scores one response; a failed reward raises."""
        instruction, told = self.context()
        extras = {name: [value] for name, value in told.items()}
        batch = episode.score(self.reward, self.task, [instruction], [text], extras)
        if batch.sample_status(0) == "failed":
            raise RewardError(
                f"the reward of instruction {instruction.id!r} failed: {batch.failures(0)}. "
                "Correct the reward; the vector environment reports such samples instead."
            )
        return batch

    @property
    def spec(self) -> EnvSpec | None:
        """How the environment was made; objects among the arguments are never copied."""
        return getattr(self, "_spec", None)

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = episode.hold_arguments(spec)


def draw_index(generator: Any, size: int) -> int:
    """Draws an index of a task of ``size`` items."""
    return int(generator.integers(size))


def check_task_index(index: Any, size: int) -> int:
    """Returns a chosen index as a plain integer.

    Raises:
        ConfigError: It is no integer in ``range(size)``.
    """
    try:
        return check_index(index, size, "task")
    except (AttributeError, IndexError) as error:
        raise ConfigError(
            f"options['index'] is {index!r}; expected an integer from 0 to {size - 1}"
        ) from error


def check_reset_options(options: Mapping[str, Any] | None, known: tuple[str, ...]) -> None:
    """Raises ConfigError when reset got an option that the environment does not have."""
    unknown = [name for name in options or {} if name not in known]
    if unknown:
        raise ConfigError(f"reset got the options {unknown}; expected only {list(known)}")
