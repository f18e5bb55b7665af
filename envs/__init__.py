if not __name__.startswith("instructrec."):
    raise ImportError(
        f"import 'instructrec.{__name__}', not {__name__!r}: "
        "the second name would make a second copy of every registry"
    )

# Gymnasium environments that show instructions and reward responses.
from instructrec.lazy import lazy_exports

_exports = {
    "Call": "instructrec.envs.tool_calls",
    "ChatEnv": "instructrec.envs.chat",
    "ChatVectorEnv": "instructrec.envs.chat",
    "CandidatesEnv": "instructrec.envs.candidates",
    "CandidatesVectorEnv": "instructrec.envs.candidates",
    "EmbeddingObservation": "instructrec.envs.embeddings",
    "HashEncoder": "instructrec.envs.embeddings",
    "Instruction": "instructrec.envs.tasks.base",
    "InstructionEnv": "instructrec.envs.instruction",
    "InstructionVectorEnv": "instructrec.envs.vector",
    "LastTurn": "instructrec.envs.turn_rewards",
    "PolicyUser": "instructrec.envs.users",
    "RefineEnv": "instructrec.envs.refine",
    "RefineVectorEnv": "instructrec.envs.refine",
    "Task": "instructrec.envs.tasks.base",
    "Tool": "instructrec.envs.tools",
    "ToolEnv": "instructrec.envs.tool_use",
    "ToolVectorEnv": "instructrec.envs.tool_use",
    "UnicodeText": "instructrec.envs.spaces",
    "list_tasks": "instructrec.envs.tasks.base",
    "make_task": "instructrec.envs.tasks.base",
    "register_task": "instructrec.envs.tasks.base",
}
__getattr__, __all__ = lazy_exports(__name__, _exports)
