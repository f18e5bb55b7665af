"""B single-turn episodes at once, rewarded with one call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from instructrec.envs import episode
from instructrec.envs.episode import RewardLike, TaskLike
from instructrec.envs.infos import InfoBatch
from instructrec.envs.instruction import check_reset_options, check_task_index, draw_index
from instructrec.envs.spaces import DEFAULT_MAX_LENGTH, UnicodeText
from instructrec.envs.tasks.base import Instruction
from instructrec.errors import ConfigError, DataError, unknown_name
from instructrec.rewards.base import RewardBatch


class InstructionVectorEnv(VectorEnv[tuple[str, ...], Sequence[str], np.ndarray]):
    """B copies of `InstructionEnv` that share the task and score their responses together.

    Copy i behaves as an `InstructionEnv` seeded with ``seed + i``. Unlike the scalar environment a
    failed reward does not raise: its reward is NaN and ``info["reward_status"]`` says ``"failed"``.

    Autoreset modes:

    * ``SAME_STEP`` (default): `step` already returns the next instructions; what belongs to the
      finished episodes is under ``final_obs`` and ``final_info`` (the reward info also on top).
    * ``DISABLED``: the caller resets, all copies or those of ``options={"reset_mask": mask}``.
    * ``NEXT_STEP``: the step after a response only resets and ignores its action.

    Args:
        num_envs: B, the number of copies.
        task: As for `InstructionEnv`; likewise split, reward, task_options and max_chars.
        split: See there.
        reward: See there.
        task_options: See there.
        max_chars: See there.
        autoreset_mode: Name or member of `gymnasium.vector.AutoresetMode`.
        max_episode_steps: Steps after which an episode is truncated, as by Gymnasium's `TimeLimit`
            around each copy: the rules of the episode know nothing of it. None or -1 sets no limit.

    Raises:
        ConfigError: An unknown task, split, reward, option or mode, or a limit below 1.
        DataError: The task's data cannot be used or lacks a column that a reward needs.
    """

    max_turns = 1
    """Most responses in one episode, from which training sizes its micro-batches."""
    told: ClassVar[tuple[str, ...]] = ()
    """Names of what `context` tells the rewards beside the task's columns."""
    counted: ClassVar[tuple[str, ...]] = ()
    """Names of numbers in the info that say what an episode had so far, for its metrics."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: TaskLike = "closed_answers",
        split: str | None = None,
        reward: RewardLike | None = None,
        task_options: Mapping[str, Any] | None = None,
        max_chars: int = DEFAULT_MAX_LENGTH,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        if not isinstance(num_envs, int) or num_envs < 1:
            raise ConfigError(f"num_envs is an integer >= 1, not {num_envs!r}")
        self.num_envs = num_envs
        self.task = episode.resolve_task(task, split, task_options)
        self.reward = episode.resolve_rewards(reward, self.task, self.told)
        self.autoreset_mode = _parse_mode(autoreset_mode)
        self._most_steps = _parse_limit(max_episode_steps)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = UnicodeText(max_chars)
        self.single_action_space = UnicodeText(max_chars)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.last_batch: RewardBatch | None = None
        """Rewards of the last step: one row for each copy that was stepped, in order."""
        self._max_chars = max_chars
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._indices = [0] * num_envs
        self._told: list[dict[str, Any]] = [{} for _ in range(num_envs)]  # by the last reset
        self._instructions: list[Instruction | None] = [None] * num_envs
        self._observations = [""] * num_envs
        self._statuses = [""] * num_envs  # of the rewards of the last responses
        self._over = np.ones(num_envs, dtype=np.bool_)
        self._elapsed = [0] * num_envs  # steps of the episodes that are shown

    @property
    def instructions(self) -> list[Instruction]:
        """The B instructions shown now (with SAME_STEP: after a step, the next ones).

        Raises:
            ResetNeeded: A copy shows none yet.
        """
        shown = [instruction for instruction in self._instructions if instruction is not None]
        if len(shown) < self.num_envs:
            raise ResetNeeded("call reset() first: not every copy shows an instruction yet")
        return shown

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Shows an instruction in every copy, or in those of the mask.

        Args:
            seed: An integer s seeds copy i with ``s + i``; or B seeds; None goes on.
            options: ``{"index": [...]}`` with B indices (or one for all) chooses the instructions;
                ``{"reset_mask": mask}`` with a (B,) bool array leaves the others as they are.

        Returns:
            B prompts as text; an info with ``task_index`` (B,) and ``instruction_id`` (B,).

        Raises:
            ConfigError: A wrong option, or a number of seeds or indices other than B.
        """
        options = options or {}
        check_reset_options(options, ("index", "reset_mask"))
        mask = self._parse_mask(options.get("reset_mask"))
        seeds = self._parse_seeds(seed)
        indices = self._parse_indices(options.get("index"), mask)
        infos = InfoBatch(self.num_envs)
        for i in np.flatnonzero(mask).tolist():
            if seeds[i] is not None:
                self._seed(i, seeds[i])
            infos.add(i, self._show(i, indices[i]))
        return self._views(), infos.batched()

    def step(
        self,
        actions: Sequence[str],
        extras: Mapping[str, Sequence[Any]] | None = None,
        active: Sequence[bool] | np.ndarray | None = None,
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Rewards B responses with one call.

        Args:
            actions: B responses.
            extras: What the policy knows about each response, e.g. ``{"completion_ids": [...]}``,
                each of length B, for rewards that ask for it.
            active: With DISABLED: (B,) bool, the copies that are stepped. The others stay as they
                are: their action is not looked at, their reward is 0 and their flags are False.

        Returns:
            Observations; rewards (B,) float64, NaN without a usable total; terminations (B,);
            truncations (B,), False but for budgets (`cut`) and max_episode_steps; and an info as
            the scalar environment's, batched:
            ``reward_parts[name]`` (B,) with the mask ``reward_parts["_" + name]``,
            ``reward_status`` (B,) of ``"scored"``, ``"not_applicable"`` or ``"failed"``.

        Raises:
            ResetNeeded: A copy has no episode to step (never reset, or over with DISABLED).
            DataError: A number of actions or extras other than B.
            ConfigError: A wrong ``active``, or one with another mode than DISABLED.
        """
        self._check_lengths(actions, extras or {})
        rows = self._rows(active)
        _ = self.instructions  # raises where a copy shows none
        cleaned = [episode.clean_action(actions[i], self._max_chars) for i in rows]
        self.hear(rows, [text for text, _ in cleaned])
        self.last_batch = batch = self._score(rows, cleaned, extras or {})
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminations, truncations = np.zeros((2, self.num_envs), dtype=np.bool_)
        earned = [] if batch is None else batch.earned.tolist()
        infos = InfoBatch(self.num_envs)
        for row, i in enumerate(rows):
            assert batch is not None
            text, cut = cleaned[row]
            told = episode.step_info(self._told[i], batch, row, cut)
            self._statuses[i] = told["reward_status"]
            rewards[i], message, more = self.judge(i, text, earned[row])
            told |= more
            self._observations[i] = message or ""
            terminations[i] = ended = message is None
            self._elapsed[i] += 1
            late = self._elapsed[i] >= self._most_steps
            truncations[i] = cut_off = late or (not ended and self.cut(i))
            infos.add(i, self._finish(i, told) if ended or cut_off else told)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            for i in sorted(set(range(self.num_envs)) - set(rows)):
                infos.add(i, self._show(i))
        return self._views(), rewards, terminations, truncations, infos.batched()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The copies' random generators."""
        return tuple(self._generator(i) for i in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The copies' seeds."""
        for i in range(self.num_envs):
            self._generator(i)  # a copy that was never seeded is seeded now
        return tuple(self._seeds)

    @property
    def spec(self) -> EnvSpec | None:
        """How the environment was made; objects among the arguments are never copied."""
        return getattr(self, "_spec", None)

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = episode.hold_arguments(spec)

    def _show(self, i: int, index: int | None = None) -> dict[str, Any]:
        """Begins an episode in copy i with a given or drawn instruction; returns its info."""
        if index is None:
            index = draw_index(self._generator(i), len(self.task))
        instruction = self.task[index]
        self._observations[i] = episode.observe(instruction, self._max_chars)
        self._indices[i], self._instructions[i], self._over[i] = index, instruction, False
        self._elapsed[i] = 0
        self._told[i] = episode.reset_info(index, instruction)
        self.begin(i)
        return self._told[i]

    def begin(self, i: int) -> None:
        """Called when an episode of copy i begins; a subclass clears its state of that copy."""

    def hear(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Called with the responses of the stepped copies before these are scored.

        Args:
            rows: The copies; a subclass thinks of its replies to all of them together.
            texts: Their responses.
        """

    def context(self, i: int) -> tuple[Instruction, dict[str, Any]]:
        """What copy i's response is scored as an answer to, and what else rewards are told."""
        instruction = self._instructions[i]
        assert instruction is not None, "a copy that is stepped shows one"
        return instruction, {}

    def judge(self, i: int, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Decides what a scored response does to the episode of copy i.

        Args:
            i: The copy.
            text: Its response.
            total: The weighted reward of it (normalised, in a training that does); NaN without.

        Returns:
            The step's reward; the next message, or None when the episode is over; and more
            entries for the info.
        """
        return total, None, {}

    def cut(self, i: int) -> bool:
        """Whether a budget ends (``truncated``) the episode that `judge` would have go on."""
        return False

    def view(self, i: int, message: str) -> Any:
        """The observation of copy i: the message itself, empty after the last response."""
        return message

    def _views(self) -> tuple[Any, ...]:
        return tuple(self.view(i, message) for i, message in enumerate(self._observations))

    def _rows(self, active: Sequence[bool] | np.ndarray | None) -> list[int]:
        """The copies whose response counts in this step."""
        if active is not None and self.autoreset_mode is not AutoresetMode.DISABLED:
            raise ConfigError(
                f"active was given with autoreset {self.autoreset_mode.name}, which steps every "
                "copy: make the environment with autoreset_mode='DISABLED'"
            )
        chosen = self._parse_mask(active, "active")
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            chosen = ~self._over
        elif (over := chosen & self._over).any():
            raise ResetNeeded(
                f"copies {np.flatnonzero(over).tolist()} have no episode: call reset(), with "
                "options={'reset_mask': mask} for these alone"
            )
        return [int(i) for i in np.flatnonzero(chosen)]

    def _finish(self, i: int, ended: dict[str, Any]) -> dict[str, Any]:
        """Ends the episode of copy i as the autoreset mode says; returns what the step tells."""
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._over[i] = True
            return ended
        final = {"final_obs": self.view(i, self._observations[i]), "final_info": ended}
        reward_info = {name: ended[name] for name in ("reward_parts", "reward_status")}
        return {**final, **self._show(i), **reward_info}

    def _score(
        self,
        rows: list[int],
        cleaned: list[tuple[str, bool]],
        extras: Mapping[str, Sequence[Any]],
    ) -> RewardBatch | None:
        if not rows:
            return None
        contexts = [self.context(i) for i in rows]
        chosen = {name: [values[i] for i in rows] for name, values in extras.items()}
        chosen |= {name: [told[name] for _, told in contexts] for name in self.told}
        asked, texts = [instruction for instruction, _ in contexts], [text for text, _ in cleaned]
        return episode.score(self.reward, self.task, asked, texts, chosen)

    def _seed(self, i: int, seed: int | None) -> None:
        self._generators[i], self._seeds[i] = seeding.np_random(seed)

    def _generator(self, i: int) -> np.random.Generator:
        if self._generators[i] is None:
            self._seed(i, None)
        generator = self._generators[i]
        assert generator is not None
        return generator

    def _parse_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        shape = np.shape(np.asarray(seed, dtype=object))
        if isinstance(seed, str) or not shape:
            raise ConfigError(f"seed = {seed!r}: expected an integer, or {self.num_envs} of them.")
        if len(seed) != self.num_envs:
            raise ConfigError(f"got {len(seed)} seeds for {self.num_envs} copies")
        return [int(one) if isinstance(one, np.integer) else one for one in seed]

    def _parse_indices(self, index: Any, mask: np.ndarray) -> list[int | None]:
        if index is None:
            return [None] * self.num_envs
        if hasattr(index, "__index__") and not np.ndim(index):
            index = [index] * self.num_envs
        if isinstance(index, str) or len(index) != self.num_envs:
            raise ConfigError(
                f"options['index'] is {index!r}; expected one integer, or one for each of the "
                f"{self.num_envs} copies (those outside reset_mask are not used)"
            )
        size = len(self.task)
        return [check_task_index(v, size) if mask[i] else None for i, v in enumerate(index)]

    def _parse_mask(self, mask: Any, name: str = "options['reset_mask']") -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        given = np.asarray(mask)
        if given.shape != (self.num_envs,) or given.dtype != np.bool_ or not given.any():
            raise ConfigError(
                f"{name} is {mask!r}; expected a bool array of shape "
                f"({self.num_envs},) with at least one True"
            )
        return given

    def _check_lengths(self, actions: Sequence[str], extras: Mapping[str, Sequence[Any]]) -> None:
        for name, values in {"actions": actions, **extras}.items():
            if isinstance(values, str) or len(values) != self.num_envs:
                raise DataError(
                    f"{name}: got {'one string' if isinstance(values, str) else len(values)}; "
                    f"expected {self.num_envs}, one for each copy"
                )


def _parse_limit(steps: int | None) -> float:
    """Most steps of an episode; -1 stands for no limit, as in ``gymnasium.make``."""
    if steps is None or steps == -1:
        return math.inf
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(
            f"max_episode_steps = {steps!r}: expected an integer >= 1, or None for no limit."
        )
    return steps


def _parse_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Reads ``"SAME_STEP"``, ``"SameStep"`` or a member."""
    if not isinstance(mode, AutoresetMode):
        wanted = str(mode).replace("_", "").casefold()
        known = {member.value.casefold(): member for member in AutoresetMode}
        if wanted not in known:
            names = [member.name for member in AutoresetMode]
            raise ConfigError(unknown_name("autoreset mode", str(mode), names))
        mode = known[wanted]
    if mode is AutoresetMode.NEXT_STEP:
        warnings.warn(
            "NEXT_STEP ignores every second response of a single-turn environment; "
            "SAME_STEP or DISABLED waste none",
            stacklevel=3,
        )
    return mode
