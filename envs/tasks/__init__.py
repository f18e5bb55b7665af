# Instructions for policies: task contract, registry, data files and procedural families.
from instructrec.lazy import lazy_exports

_exports = {
    "ClosedAnswers": "instructrec.envs.tasks.mixture",
    "DatasetTask": "instructrec.envs.tasks.dataset",
    "list_templates": "instructrec.envs.tasks.templates",
    "register_template": "instructrec.envs.tasks.templates",
    "Instruction": "instructrec.envs.tasks.base",
    "ProceduralTask": "instructrec.envs.tasks.procedural",
    "Task": "instructrec.envs.tasks.base",
    "list_tasks": "instructrec.envs.tasks.base",
    "make_task": "instructrec.envs.tasks.base",
    "register_task": "instructrec.envs.tasks.base",
    "render_prompt": "instructrec.envs.tasks.base",
}
__getattr__, __all__ = lazy_exports(__name__, _exports)
