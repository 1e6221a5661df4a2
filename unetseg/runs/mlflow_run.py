"""A run as it is logged to MLflow: beside the run folders, or where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import MLFlowLogger

from unetseg import launch
from unetseg.errors import UserError, first_line
from unetseg.files import write_text
from unetseg.runs.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RUN_ID = "mlflow_run_id.txt"
"""File of a run folder: which of MLflow's runs a resumed run continues."""


def mlflow_logger(run: RunFolder, options: dict[str, Any], experiment: str) -> MLFlowLogger:
    """Return the MLflow logger of a run; one that is resumed goes on in the same MLflow run.

    Args:
        run: its folder.
        options: under flat names, see `unetseg.runs.wandb_run.flat_config`.
        experiment: MLflow's name for what belongs together.

    Raises:
        UserError: the database or the server can't be used.
    """
    output, file = run.path.resolve().parent, run.path / RUN_ID
    address = os.environ.get("MLFLOW_TRACKING_URI")
    for name in ("mlflow", "alembic"):  # they tell of every table of a new database
        logging.getLogger(name).setLevel(logging.WARNING)
    known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    uri = address or f"sqlite:///{output / 'mlflow.db'}"
    logger = MLFlowLogger(
        experiment_name=experiment,
        run_name=run.path.name,
        tracking_uri=uri,
        artifact_location=None if address else (output / "mlflow_artifacts").as_uri(),
        run_id=known,
    )
    if not launch.is_first():
        return logger
    try:
        if known is None:
            logger.log_hyperparams(options)
            write_text(file, f"{logger.run_id}\n")
        else:
            logger.experiment.update_run(known, "RUNNING")
    except Exception as error:  # MLflow's own, and those of its database or server
        raise UserError(
            f"MLflow can't log to {uri}: {first_line(error)}",
            accepted="MLFLOW_TRACKING_URI of a server that answers, or none: a database beside the run folders",
            advice="logger=csv",
        ) from None
    return logger


def log_picture(logger: MLFlowLogger, name: str, picture: np.ndarray, step: int) -> None:
    """Keep a picture, HxWx3 uint8, among the run's artifacts, one file a step."""
    logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}/step_{step}.png")


def log_figure(logger: MLFlowLogger, figure: Path) -> None:
    """Keep a figure among the run's artifacts, in the place of its earlier state."""
    logger.experiment.log_artifact(logger.run_id, str(figure), "figures")


def log_summary(logger: MLFlowLogger, summary: dict[str, Any], per_class: pd.DataFrame) -> None:
    """Put the numbers of a run's summary beside its curves, and the table of its classes among the artifacts.

    The best val/iou is val/iou_best: under its own name it would be one more point of the curve.
    """
    numbers = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
    if "val/iou" in numbers:
        numbers["val/iou_best"] = numbers.pop("val/iou")
    logger.log_metrics(numbers)
    logger.experiment.log_text(logger.run_id, per_class.to_csv(index=False), "per_class.csv")
