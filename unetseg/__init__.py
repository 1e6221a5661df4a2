"""unetseg: U-Nets whose long skip connections can be switched, measured and explained.

    run = unetseg.train("model.skip=none", data="synthetic", seed=0)     a Run: summary, tables, figures
    unetseg.evaluate(checkpoint=run.folder, split="val")                 an Evaluation
    sweep = unetseg.ablate("model.skip=concat,none", data="synthetic")   a Sweep of Runs
    unetseg.report(runs=sweep.folder)                                    the path of report.html
    unetseg.Run("runs/NAME"), unetseg.Sweep("runs/demo")                 what lies there
    unetseg.load("runs/NAME")                                            a model that takes pictures

The first four are modules that can be called: see `unetseg.options.call.CallableModule`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetseg.ablate import call as ablate
    from unetseg.errors import Halt, UserError
    from unetseg.evaluate import call as evaluate
    from unetseg.inference.export import save_pretrained
    from unetseg.inference.predictor import load
    from unetseg.report import call as report
    from unetseg.runs.run import Evaluation, Run, Sweep
    from unetseg.train import call as train

__all__ = [
    "Evaluation",
    "Halt",
    "Run",
    "Sweep",
    "UserError",
    "ablate",
    "evaluate",
    "load",
    "report",
    "save_pretrained",
    "train",
]
__version__ = "0.2.0"

_HOMES = {
    **dict.fromkeys(("Halt", "UserError"), "unetseg.errors"),
    **dict.fromkeys(("Evaluation", "Run", "Sweep"), "unetseg.runs.run"),
    "load": "unetseg.inference.predictor",
    "save_pretrained": "unetseg.inference.export",
}
_MODULES = ("ablate", "evaluate", "report", "train")


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for, so that a wrong option on the command line fails at once."""
    if name in _MODULES:
        return importlib.import_module(f"unetseg.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
