"""What supervised fine-tuning imitates: single answers, or those of whole episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructrec.envs.tasks.base import Instruction, Task
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import DataError
from instructrec.experiments.playing import Episodes
from instructrec.policies.base import Message, Prompt
from instructrec.rewards.combine import make_rewards

COLUMN = "demonstration"
"""Column with the answers of an episode of several turns, in order."""

Example = tuple[Prompt, str]
"""What the policy sees, and what it is to say."""


def chosen(task: Task, number: int, seed: int) -> list[int]:
    """Chooses the seed's own block of instructions: neighbours, so that mixtures stay balanced.

    Args:
        task: Where they come from.
        number: How many; all when the task has fewer.
        seed: Which block; blocks of different seeds do not overlap until the task is used up.

    Returns:
        Their indices.
    """
    number = min(number, len(task))
    first = (seed * number) % len(task)
    return [(first + i) % len(task) for i in range(number)]


def examples(task: Task, indices: Sequence[int], episodes: Episodes) -> list[Example]:
    """Makes examples of instructions: one, or one for each answer of an episode.

    Answers of an episode come from the column `COLUMN`; the environment says what it has to say to
    them (it calls the tools, say), and that is part of what the policy sees next. Without the
    column an episode has one answer, the reference.

    Args:
        task: The instructions.
        indices: Which of them.
        episodes: What an episode is.

    Raises:
        DataError: An instruction has no answer to imitate, or its episode ends before the last.
    """
    if not indices:
        return []
    if not episodes.several:
        return [(item.prompt, answer(item)) for item in (task[i] for i in indices)]
    env = episodes.make(len(indices), task, make_rewards(_nothing))
    env.reset(options={"index": list(indices)})
    return _played(env, [_answers(item) for item in env.instructions])


def answer(instruction: Instruction) -> str:
    """The response that a demonstration shows: the first reference.

    Raises:
        DataError: The instruction has no reference.
    """
    reference = instruction.columns.get("reference")
    first = reference[0] if isinstance(reference, list | tuple) and reference else reference
    if not isinstance(first, str) or not first.strip():
        raise DataError(
            f"instruction {instruction.id!r} has the reference {reference!r}: supervised "
            "fine-tuning needs a text to imitate in the column 'reference'."
        )
    return first


def _answers(item: Instruction) -> list[str]:
    given = item.columns.get(COLUMN)
    if given is None:
        return [answer(item)]
    is_list = isinstance(given, list | tuple) and given
    if not is_list or not all(isinstance(text, str) and text.strip() for text in given):
        raise DataError(
            f"instruction {item.id!r} has the {COLUMN} {str(given)[:80]!r}: expected a list of the "
            "answers of an episode."
        )
    return list(given)


def _played(env: InstructionVectorEnv, answers: Sequence[Sequence[str]]) -> list[Example]:
    """Gives the answers of each episode; examples episode by episode."""
    seen: list[list[Prompt]] = [[item.prompt] for item in env.instructions]
    for turn in range(max(map(len, answers))):
        going = np.array([turn < len(of_it) for of_it in answers])
        said = [of_it[turn] if turn < len(of_it) else "" for of_it in answers]
        messages, _, terminated, truncated, _ = env.step(said, active=going)
        for i in np.flatnonzero(going).tolist():
            if turn + 1 == len(answers[i]):
                continue
            if terminated[i] or truncated[i]:
                raise DataError(
                    f"the {COLUMN} of instruction {env.instructions[i].id!r} has "
                    f"{len(answers[i])} answers, but its episode ends with number {turn + 1}, "
                    f"{said[i][:80]!r}. Raise task.max_turns, or correct it."
                )
            seen[i].append(_went_on(seen[i][-1], said[i], messages[i]))
    return [
        example
        for prompts, texts in zip(seen, answers, strict=True)
        for example in zip(prompts, texts, strict=True)
    ]


def _went_on(prompt: Prompt, said: str, message: str) -> list[Message]:
    before: list[Message] = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    )
    return [
        *before,
        {"role": "assistant", "content": said},
        {"role": "user", "content": message},
    ]


def _nothing(completions: Sequence[str], **columns: object) -> list[float]:
    """A reward for episodes that are played for what is said in them."""
    return [0.0] * len(completions)
