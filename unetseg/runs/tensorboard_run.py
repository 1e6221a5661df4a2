"""A run as it is logged to TensorBoard, in the folder tensorboard/ of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger

from unetseg import launch
from unetseg.runs.folder import RunFolder
from unetseg.runs.tables import read_metrics

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def tensorboard_logger(run: RunFolder, options: dict[str, Any]) -> TensorBoardLogger:
    """Return the TensorBoard logger of a run; one that is resumed goes on in the same folder.

    What an interrupted run logged after the checkpoint that it goes on from is hidden by TensorBoard: metrics.csv has
    been cut back to it.

    Args:
        run: its folder.
        options: under flat names, see `unetseg.runs.wandb_run.flat_config`.
    """
    kept = read_metrics(run).step
    purge: dict[str, Any] = {"purge_step": int(kept.max()) + 1} if len(kept) else {}
    logger = TensorBoardLogger(run.path, name="tensorboard", version="", **purge)
    if launch.is_first():
        logger.experiment.add_text("options", _as_it_is(options))
    return logger


def log_picture(logger: TensorBoardLogger, name: str, picture: np.ndarray, step: int) -> None:
    """Show a picture, HxWx3 uint8, at a step."""
    logger.experiment.add_image(name, picture, global_step=step, dataformats="HWC")


def log_summary(logger: TensorBoardLogger, summary: dict[str, Any], per_class: pd.DataFrame) -> None:
    """Show a run's summary and the table of its classes as text."""
    logger.experiment.add_text("summary", _as_it_is(summary))
    logger.experiment.add_text("test/per_class", _indented(per_class.to_string()))


def _as_it_is(values: dict[str, Any]) -> str:
    return _indented("\n".join(f"{name}: {value}" for name, value in values.items()))


def _indented(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
