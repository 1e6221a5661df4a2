"""Callbacks that show and measure a training: progress, sample pictures, speed and memory."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console

from unetseg.data.dataset import Batch, Examples
from unetseg.evaluation.record import predict_samples
from unetseg.names import minutes
from unetseg.runs import pictures
from unetseg.training.steering import averaged


class ProgressBar(RichProgressBar):
    """Lightning's bar without the logger's version number."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """Return the numbers behind the bar."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class TextBar(TQDMProgressBar):
    """The same as text, for notebooks that lack what Rich draws with."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """Return the numbers behind the bar."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class EpochLines(L.Callback):
    """Prints a line after each epoch, for logs: without a terminal there is no bar.

    epoch 3/20, step 66, train/loss 0.3661, val/iou 0.5532, 62.9 images/s, 4:05 left
    """

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.images = 0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin to count."""
        self.begun, self.images = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the images."""
        self.images += len(batch.indices) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Print the line."""
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}  # on all processes
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self.begun
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or -1
        parts = [f"epoch {done}/{epochs}" if epochs > 0 else f"epoch {done}", f"step {trainer.global_step}"]
        parts += [f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss", "val/iou") if name in metrics]
        parts.append(f"{self.images / seconds:.1f} images/s")
        if done < epochs:
            parts.append(f"{minutes(seconds * (epochs - done))} left")
        print(", ".join(parts), flush=True)


def progress_callback(wanted: bool) -> L.Callback:
    """Return what shows progress where the output goes to: a bar in a terminal or notebook, otherwise a line an epoch.

    Args:
        wanted: trainer.enable_progress_bar.
    """
    console = Console()
    if not wanted or not (console.is_terminal or console.is_jupyter):
        return EpochLines()
    # Rich draws in a notebook by means of ipywidgets
    return TextBar() if console.is_jupyter and find_spec("ipywidgets") is None else ProgressBar()


class SamplePictures(L.Callback):
    """Sends a few validation pictures, spread over the split, with the prediction and the truth to the loggers.

    Args:
        classes: names of the classes.
        count: number of pictures.
    """

    def __init__(self, classes: Sequence[str], count: int = 6):
        self.classes, self.count = classes, count

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Predict the pictures and log them."""
        loggers = pictures.takers(trainer.loggers)
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        dataset: Examples = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        length = len(dataset)
        indices = np.unique(np.linspace(0, length - 1, min(self.count, length)).round().astype(int)).tolist()
        with trainer.precision_plugin.forward_context(), averaged(trainer):  # the weights that are scored
            samples = predict_samples(module.get_submodule("model"), dataset, indices)
        masked = [(sample.name, sample.image, sample.predicted, sample.target) for sample in samples]
        pictures.log_predictions(loggers, masked, self.classes, trainer.global_step)


class Cost(L.Callback):
    """Measures speed, memory and time of a training.

    Speed is training images a second, without validation and without the first batch of each epoch, which waits for the
    loader's processes to start.
    """

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.images = 0
        self.training_seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add the time since the last batch."""
        now = time.perf_counter()
        if batch_idx > 0:
            self.images += len(batch.indices) * trainer.world_size
            self.training_seconds += now - self.last
        self.last = now

    def measurements(self) -> dict[str, float]:
        """Return images_per_second, peak_memory (bytes: the device's, or this process's on a CPU) and seconds."""
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        else:
            unit = 1 if platform.system() == "Darwin" else 1024  # bytes
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {
            "images_per_second": self.images / self.training_seconds if self.images else 0.0,
            "peak_memory": memory,
            "seconds": time.perf_counter() - self.started,
        }
