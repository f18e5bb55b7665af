"""Reinforcement-learning instruction tuning that a researcher can trust."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec import model_names
from instructrec.checkout import require_links

__version__ = "0.1.0"

require_links()

if TYPE_CHECKING:
    from instructrec.experiments.api import compare, evaluate, train

__all__ = ["__version__", "compare", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """Loads what trains, evaluates and compares when it is asked for."""
    if name in ("train", "evaluate", "compare"):
        from instructrec.experiments import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _embedded_folder() -> Path:
    """Finds the embedded model: environments count its tokens, but import no policies."""
    from instructrec.policies.embedded import embedded_folder

    return embedded_folder()


def _register_environments() -> None:
    """Makes ``instructrec/...`` known to ``gymnasium.make`` and ``gymnasium.make_vec``."""
    from gymnasium import register

    tasks = {
        "Instruction": None,  # any task: gym.make("instructrec/Instruction-v0", task="data.jsonl")
        "ClosedAnswers": "closed_answers",
        "Category": "category",
        "OddOneOut": "odd_one_out",
        "SwapWords": "swap_words",
        "CompareNumbers": "compare_numbers",
        "Parity": "parity",
        "Arithmetic": "arithmetic",
        "Skills": "skills",
        "ReasoningGym": "reasoning_gym",  # pip install 'instructrec[reasoning-gym]'
    }
    for name, task in tasks.items():
        register(
            id=f"instructrec/{name}-v0",
            entry_point="instructrec.envs.instruction:InstructionEnv",
            vector_entry_point="instructrec.envs.vector:InstructionVectorEnv",
            kwargs={} if task is None else {"task": task},
        )
    register(
        id="instructrec/Refine-v0",  # several tries at the instructions of any task
        entry_point="instructrec.envs.refine:RefineEnv",
        vector_entry_point="instructrec.envs.refine:RefineVectorEnv",
    )
    register(
        id="instructrec/Chat-v0",  # conversations with a simulated user
        entry_point="instructrec.envs.chat:ChatEnv",
        vector_entry_point="instructrec.envs.chat:ChatVectorEnv",
    )
    register(
        id="instructrec/Tool-v0",  # answers with tools
        entry_point="instructrec.envs.tool_use:ToolEnv",
        vector_entry_point="instructrec.envs.tool_use:ToolVectorEnv",
    )
    register(
        id="instructrec/Candidates-v0",  # a choice among responses, for agents of numbers
        entry_point="instructrec.envs.candidates:CandidatesEnv",
        vector_entry_point="instructrec.envs.candidates:CandidatesVectorEnv",
    )


_register_environments()
model_names.FOLDERS[model_names.EMBEDDED] = _embedded_folder
