"""``instructrec chat``: talk to a policy, or to two beside each other, in a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from instructrec.choices import check_choices
from instructrec.envs.tasks.base import Instruction, render_prompt
from instructrec.errors import ConfigError, InstructRecError, did_you_mean
from instructrec.experiments import evaluate_policy
from instructrec.experiments.chat_session import Answer, Lessons, Speaker
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.env_commands import shown
from instructrec.experiments.env_play import read_text
from instructrec.experiments.listing import table
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.telling import say
from instructrec.policies.config import EndpointConfig

MOST_POLICIES = 2
HELP = """\
/task [NAME [SPLIT]]  ask the next instruction of a task and show what the answers earn
/new                  forget the conversation
/help                 show these lines
/quit                 end (so does Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one; // begins a text with /."""
_COMMANDS = ("/task", "/new", "/help", "/quit")
_FREE_TOKENS = 256
"""Most tokens of an answer of a policy that no run says more about."""


@dataclass(frozen=True)
class ChatConfig:
    """How policies answer, and on what they are tried (``instructrec chat``)."""

    task: str | None = None
    """Task of /task; None takes that of the (first) policy's run, else closed_answers."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task."""
    split: str | None = None
    """Split; None takes the test split."""
    temperature: float = 0.0
    """Softmax temperature; 0 is greedy decoding."""
    max_new_tokens: int | None = None
    """Most tokens in one answer; None takes that of the policy's run, else 256."""
    top_p: float = 1.0
    """Nucleus: smallest set of tokens with this much probability."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    system_prompt: str | None = None
    """System message; None takes that of the policy's run, else none."""
    seed: int = 0
    """Seed of the sampling."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    endpoint: EndpointConfig = EndpointConfig()
    """How a policy behind a server is asked."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens = {self.max_new_tokens}: expected at least 1.")


def run_chat(policies: Sequence[str], config: ChatConfig, source: TextIO | None = None) -> None:
    """Talks until the input ends.

    Args:
        policies: One or two: run folders, Hugging Face folders or hub ids, model names, servers.
        config: See `ChatConfig`.
        source: What the person says; None takes the standard input.

    Raises:
        ConfigError: There are more policies than two, or one that is no model.
        PolicyError: A policy cannot be loaded.
    """
    if len(policies) > MOST_POLICIES:
        raise ConfigError(f"{len(policies)} policies: expected one or two.")
    found = [_asked(policy, config) for policy in policies]
    speakers = [
        Speaker(name, evaluate_policy.load(policy, plan, asked))
        for name, policy, (asked, plan) in zip(_names(policies), policies, found, strict=True)
    ]
    source = source or sys.stdin
    if hasattr(source, "reconfigure"):
        source.reconfigure(errors="replace")  # whatever the pipe holds
    say(f"{shown(' and '.join(policies))}\n\n{HELP}\n")
    Chat(speakers, found[0][1], source).run()


def _names(policies: Sequence[str]) -> list[str]:
    """Short names; the whole ones where these would be alike."""
    short = [Path(policy).name for policy in policies]
    return short if len(set(short)) == len(short) else list(policies)


def _asked(policy: str, config: ChatConfig) -> tuple[EvaluateConfig, evaluate_policy.Plan]:
    """How a policy is loaded and answers, and its task: as asked for, else as in its run."""
    if policy in evaluate_policy.SCRIPTED or policy.endswith(".jsonl"):
        raise ConfigError(
            f"{policy!r} is no model: expected a run folder, a Hugging Face folder or hub id, a "
            "model name, or the address of a server."
        )
    run = RunFolder.open(policy) if (Path(policy) / "run.json").is_file() else None
    asked = EvaluateConfig(
        task=config.task,
        options=config.options,
        split=config.split,
        env="instruction",
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens or (_FREE_TOKENS if run is None else None),
        top_p=config.top_p,
        top_k=config.top_k,
        system_prompt=config.system_prompt,
        dtype=config.dtype,
        device=config.device,
        seed=config.seed,
        endpoint=config.endpoint,
    )
    return asked, evaluate_policy.make_plan(policy, asked, run)


class Chat:
    """The loop: a line is a command, or is said to every policy.

    Args:
        speakers: Who answers.
        plan: The task of ``/task``, and what else the first policy's run says.
        source: What the person says.
    """

    def __init__(
        self, speakers: Sequence[Speaker], plan: evaluate_policy.Plan, source: TextIO
    ) -> None:
        self._speakers, self._plan, self._source = speakers, plan, source
        self._lessons: Lessons | None = None

    def run(self) -> None:
        """Talks until the input ends."""
        try:
            self._talk()
        finally:
            self._close()

    def _talk(self) -> None:
        while True:
            try:
                text = read_text(self._source)
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("\nCtrl-D or /quit ends.")
                continue
            if text.strip() in ("/quit", "/exit"):
                return
            try:
                self._heed(text)
            except InstructRecError as error:  # a mistake ends a command, not the conversation
                say(f"error: {shown(str(error))}\n")

    def _heed(self, text: str) -> None:
        word, *rest = text.split() or [""]
        if word == "/help":
            say(HELP)
        elif word == "/new":
            self._forget()
            say("a new conversation\n")
        elif word == "/task":
            self._ask(rest)
        elif word.startswith("/") and not word.startswith("//"):
            raise ConfigError(
                f"unknown command {word!r}.{did_you_mean(word, _COMMANDS)} Known: "
                f"{', '.join(_COMMANDS)}."
            )
        elif word:
            said = text[1:] if word.startswith("//") else text
            self._say([{"role": "user", "content": said}])

    def _forget(self) -> None:
        for speaker in self._speakers:
            speaker.messages = []

    def _ask(self, named: list[str]) -> None:
        """Asks the next instruction of a task in a new conversation, and scores the answers."""
        if named or self._lessons is None:
            self._lessons = self._learn(named)
        item = self._lessons.draw()
        alone = isinstance(item.prompt, str)
        prompt = [{"role": "user", "content": item.prompt}] if alone else list(item.prompt)
        self._forget()
        say(f"[{shown(item.id)}]\n{shown(render_prompt(item.prompt))}\n")
        answers = self._say(prompt)
        self._score(self._lessons, item, answers)

    def _learn(self, named: list[str]) -> Lessons:
        """The task that is named, by its own rewards; else that of the policy, by its run's."""
        plan = self._plan
        task, split = [*named, plan.split][:2] if named else (plan.task, plan.split)
        own = task == plan.task
        made = Lessons(task, split, plan.options if own else None, plan.rewards if own else None)
        self._close()
        return made

    def _close(self) -> None:
        if self._lessons is not None:
            self._lessons.close()

    def _score(self, lessons: Lessons, item: Instruction, answers: Sequence[Answer]) -> None:
        """Shows the parts of the reward, a column for each policy, and the reference."""
        columns = [lessons.scored(item, answer.text) for answer in answers]
        rows = [
            (cells[0][0], *(value for _, value in cells)) for cells in zip(*columns, strict=True)
        ]
        if len(answers) > 1:
            rows.insert(0, ("", *(shown(s.name) for s in self._speakers)))
        say(table(rows))
        if item.columns.get("reference") is not None:
            say(f"reference  {shown(repr(item.columns['reference']))}")
        say("")

    def _say(self, messages: Sequence[Any]) -> list[Answer]:
        """Says something to every policy; answers stream, two of them beside each other.

        Where one of them cannot answer, nothing was said to any: they stay in step.
        """
        before = [speaker.messages for speaker in self._speakers]
        try:
            return self._said(messages)
        except InstructRecError:
            for speaker, had in zip(self._speakers, before, strict=True):
                speaker.messages = had
            raise

    def _said(self, messages: Sequence[Any]) -> list[Answer]:
        two = len(self._speakers) > 1
        with (
            _Columns([s.name for s in self._speakers]) if two and _wide() else nullcontext() as view
        ):
            answers = []
            for i, speaker in enumerate(self._speakers):
                if view is None and two:
                    print(f"{shown(speaker.name)}: ", end="", flush=True)
                tell = _stream if view is None else view.teller(i)
                answers.append(speaker.answer(list(messages), tell))
                if view is None:
                    print(flush=True)
        for speaker, answer in zip(self._speakers, answers, strict=True):
            who = f"{shown(speaker.name)}: " if two else ""
            say(f"({who}{_told(answer)})")
        say("")
        return answers


def _told(answer: Answer) -> str:
    """How an answer ended, and how fast it was."""
    ended = {"eos": "", "length": "cut: --max_new_tokens allows more, ", "stopped": "stopped, "}
    first = ended.get(answer.ended_by, f"{answer.ended_by}, ")
    if answer.tokens is None:
        return f"{first}{answer.seconds:.1f} s"
    rate = answer.tokens / max(answer.seconds, 1e-9)
    return f"{first}{answer.tokens} tokens, {rate:.0f} tokens/s"


def _stream(piece: str) -> None:
    """Prints a piece of an answer; what could steer the terminal is written out."""
    print(shown(piece), end="", flush=True)


def _wide() -> bool:
    """Whether two answers fit beside each other, and there is somebody to see it."""
    from rich.console import Console

    console = Console()
    return console.is_terminal and console.width >= 60


class _Columns:
    """Two answers beside each other, redrawn as they grow."""

    def __init__(self, names: Sequence[str]) -> None:
        from rich.live import Live

        self._names = [shown(name) for name in names]
        self._texts = ["" for _ in names]
        self._live = Live(self._view(), refresh_per_second=8, vertical_overflow="visible")

    def teller(self, i: int) -> Any:
        """What receives the pieces of answer number i."""

        def tell(piece: str) -> None:
            self._texts[i] += shown(piece)
            self._live.update(self._view())

        return tell

    def _view(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table(expand=True, show_edge=False)
        for name in self._names:
            grid.add_column(Text(name), ratio=1, overflow="fold")
        grid.add_row(*map(Text, self._texts))  # Text has no markup to fall for
        return grid

    def __enter__(self) -> _Columns:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(self._view(), refresh=True)
        self._live.stop()
