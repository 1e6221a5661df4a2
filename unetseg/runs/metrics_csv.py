"""metrics.csv: every scalar that a run logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from unetseg.files import append_rows
from unetseg.runs.folder import METRICS_COLUMNS


class LongCsv(Logger):
    """metrics.csv: one row for every logged scalar: step, epoch, name, value.

    Values are written with all their digits, so that two equal runs write equal files.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> LongCsv(path).log_metrics({"train/loss": 0.5, "epoch": 0}, step=7)
        >>> print(path.read_text())
        step,epoch,name,value
        7,0,train/loss,0.5
        <BLANKLINE>
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        """An empty text, as there is one file a run."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the scalars of a step."""
        epoch = int(metrics.get("epoch", 0))
        rows = [(step, epoch, name, repr(float(value))) for name, value in metrics.items() if name != "epoch"]
        append_rows(self.path, METRICS_COLUMNS, rows)
