if not __name__.startswith("instructrec."):
    raise ImportError(
        f"import 'instructrec.{__name__}', not {__name__!r}: "
        "the second name would make a second copy of every registry"
    )
# Policies: whatever answers prompts. Language models (causal_lm), the scripted bounds of every
# comparison (scripted), the embedded default model (embedded) and a tiny one for tests (tiny).
# Names load on first use: importing the package alone imports neither torch nor transformers.

from instructrec.lazy import lazy_exports

_exports = {
    "CausalLMPolicy": "instructrec.policies.causal_lm",
    "ConstantPolicy": "instructrec.policies.scripted",
    "EmptyPolicy": "instructrec.policies.scripted",
    "LoraSettings": "instructrec.policies.config",
    "OraclePolicy": "instructrec.policies.scripted",
    "Policy": "instructrec.policies.base",
    "PolicyConfig": "instructrec.policies.config",
    "Prompt": "instructrec.policies.base",
    "RandomPolicy": "instructrec.policies.scripted",
    "ReplayPolicy": "instructrec.policies.scripted",
    "Responses": "instructrec.policies.base",
    "Sampling": "instructrec.policies.config",
    "StopReason": "instructrec.policies.base",
    "TokenPolicy": "instructrec.policies.base",
    "load_policy": "instructrec.policies.causal_lm",
}
__getattr__, __all__ = lazy_exports(__name__, _exports)
