"""A run as it is logged to Weights & Biases."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from unetseg import launch
from unetseg.names import one_word
from unetseg.options.schema import Train
from unetseg.options.settings import TABLES, table_text, variant
from unetseg.runs.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def flat_config(options: Train) -> dict[str, Any]:
    """Return the options with flat keys, as W&B's filters and groupings want them: skip, encoder, data_size, ..."""
    flat: dict[str, Any] = {}
    for key, value in options.model_dump(exclude={"wandb"}).items():
        if not isinstance(value, dict) or key in TABLES:
            flat[key] = table_text(value) if isinstance(value, dict) else value
            continue
        prefix = "" if key == "model" else f"{key}_"
        flat |= {f"{prefix}{name}": entry for name, entry in value.items()}
    words = {name: one_word(flat[name]) for name in ("skip", "skip_flow", "skip_gradient", "skip_scale")}
    return flat | words | {"variant": variant(options.model.model_dump())}


def wandb_mode(options: Train) -> Literal["online", "offline", "disabled"]:
    """Return the mode; `auto` is online only where W&B finds a key."""
    import wandb

    mode = options.wandb.mode
    if mode == "offline" or mode == "disabled":
        return mode
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def earlier_run_id(run: RunFolder) -> str | None:
    """Return the id of the W&B run that a resumed run continues; None where there is none."""
    folders = sorted((run.path / "wandb").glob("*run-*-*"))
    return folders[-1].name.rpartition("-")[2] if folders else None


def wandb_logger(options: Train, run: RunFolder) -> WandbLogger:
    """Return the W&B logger of a run, started on the first process; its files lie in the run folder."""
    if not launch.is_first():
        return WandbLogger()
    os.environ.setdefault("WANDB_SILENT", "true")  # `finish` prints where the run is
    import wandb

    arguments: dict[str, Any] = {
        "project": options.wandb.project,
        "entity": options.wandb.entity,
        "name": run.path.name,
        "dir": run.path.resolve(),  # a W&B service that another process started has another working directory
        "config": flat_config(options),
        "settings": wandb.Settings(init_timeout=10),  # seconds; the default waits for minutes
    }
    if run_id := earlier_run_id(run):
        arguments |= {"id": run_id, "resume": "allow"}
    try:
        experiment = wandb.init(mode=wandb_mode(options), **arguments)
    except wandb.errors.CommError as error:
        print(f"W&B can't be reached, the run is logged offline: {error}")
        experiment = wandb.init(mode="offline", **arguments)
    return WandbLogger(experiment=experiment)


def log_predictions(
    logger: WandbLogger,
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    labels: dict[int, str],
    step: int,
) -> None:
    """Send pictures, HxWx3 uint8, by their names with the predicted and the true mask, HxW uint8, which W&B draws."""
    masks = [
        {
            "prediction": {"mask_data": predicted, "class_labels": labels},
            "truth": {"mask_data": target, "class_labels": labels},
        }
        for _, _, predicted, target in pictures
    ]
    logger.log_image(
        "val/predictions",
        [image for _, image, _, _ in pictures],
        step=step,
        caption=[name for name, *_ in pictures],
        masks=masks,
    )


def log_summary(logger: WandbLogger, summary: dict[str, Any], per_class: pd.DataFrame) -> None:
    """Put a run's summary beside its curves in W&B, with the table of its classes.

    Of three classes or more each has an IoU of its own, test/iou_CLASS, which W&B's panels can compare between runs.
    """
    scored = per_class.dropna(subset="iou") if len(per_class) > 2 else per_class[:0]
    by_class = {f"test/iou_{name}": iou for name, iou in zip(scored["class"], scored.iou, strict=True)}
    import wandb

    logger.experiment.log({"test/per_class": wandb.Table(dataframe=per_class)})
    logger.experiment.summary.update(summary | by_class)


@rank_zero_only
def log_model(loggers: list[Logger], checkpoint: str) -> None:
    """Upload the tested checkpoint as best.ckpt of the artifact model-RUN_ID:best, where W&B is online.

    unetseg.load reads it back.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and not (logger.experiment.offline or logger.experiment.disabled):
            import wandb

            artifact = wandb.Artifact(f"model-{logger.experiment.id}", type="model")
            artifact.add_file(checkpoint, name="best.ckpt")
            logger.experiment.log_artifact(artifact, aliases=["best"])


@rank_zero_only
def finish(loggers: list[Logger]) -> None:
    """Close W&B's run and print where it is; left open, the next run of this process would be merged into it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            upload = f"wandb sync {shlex.quote(str(Path(run.dir).parent))}"
            place = f"W&B: {run.url}" if run.url else f"W&B was offline; to upload this run: {upload}"
            run.finish()
            if not run.disabled:
                print(place)
