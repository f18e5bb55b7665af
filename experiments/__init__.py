if not __name__.startswith("instructrec."):
    raise ImportError(
        f"import 'instructrec.{__name__}', not {__name__!r}: "
        "the second name would make a second copy of every registry"
    )

# Launching, tracking and evaluating runs; nothing else of the project depends on this package.
# Every name is imported on first use, so that the command line answers at once.

from instructrec.lazy import lazy_exports

_exports = {
    "EvaluateConfig": "instructrec.experiments.config",
    "Evaluation": "instructrec.experiments.evaluation",
    "QuickstartConfig": "instructrec.experiments.quickstart_config",
    "RunFolder": "instructrec.experiments.runfolder",
    "TrackingConfig": "instructrec.experiments.tracking",
    "TrainConfig": "instructrec.experiments.config",
    "evaluate": "instructrec.experiments.evaluation",
    "load_evaluation": "instructrec.experiments.evaluation",
    "read_metrics": "instructrec.experiments.runfolder",
    "run_evaluation": "instructrec.experiments.evaluate_policy",
    "run_quickstart": "instructrec.experiments.quickstart",
    "run_training": "instructrec.experiments.train",
}
__getattr__, __all__ = lazy_exports(__name__, _exports)
