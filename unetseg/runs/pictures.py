"""Pictures, figures and the summary of a run, for each logger that takes them: W&B, TensorBoard, MLflow.

metrics.csv takes none. All run on a training's first process alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from unetseg.data.colours import is_background, overlay
from unetseg.names import IGNORE
from unetseg.runs import mlflow_run, tensorboard_run, wandb_run

if TYPE_CHECKING:
    import pandas as pd

TAKERS = (WandbLogger, TensorBoardLogger, MLFlowLogger)
Masked = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""A picture's name, the picture, HxWx3 uint8, and two masks, HxW uint8: predicted and true."""


def takers(loggers: Iterable[Logger]) -> list[Logger]:
    """Return the loggers that take pictures."""
    return [logger for logger in loggers if isinstance(logger, TAKERS)]


@rank_zero_only
def log_predictions(loggers: Iterable[Logger], pictures: Sequence[Masked], classes: Sequence[str], step: int) -> None:
    """Send pictures with their masks: W&B draws them itself, the others get prediction and truth side by side."""
    background = is_background(classes)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb_run.log_predictions(logger, pictures, {**dict(enumerate(classes)), IGNORE: "ignored"}, step)
            continue
        for number, (_, image, predicted, target) in enumerate(pictures):
            drawn = np.hstack([overlay(image, mask, background=background) for mask in (predicted, target)])
            if isinstance(logger, TensorBoardLogger):
                tensorboard_run.log_picture(logger, f"val/predictions/{number}", drawn, step)
            elif isinstance(logger, MLFlowLogger):
                mlflow_run.log_picture(logger, f"predictions/{number}", drawn, step)


@rank_zero_only
def log_figure(loggers: Iterable[Logger], name: str, figure: Path, step: int) -> None:
    """Send a figure, a .png, as it is after a step."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(figure)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(figure) as image:
                tensorboard_run.log_picture(logger, name, np.asarray(image.convert("RGB")), step)
        elif isinstance(logger, MLFlowLogger):
            mlflow_run.log_figure(logger, figure)


@rank_zero_only
def log_summary(loggers: Iterable[Logger], summary: dict[str, Any], per_class: pd.DataFrame) -> None:
    """Put a run's summary beside its curves, with the table of its classes."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb_run.log_summary(logger, summary, per_class)
        elif isinstance(logger, TensorBoardLogger):
            tensorboard_run.log_summary(logger, summary, per_class)
        elif isinstance(logger, MLFlowLogger):
            mlflow_run.log_summary(logger, summary, per_class)
