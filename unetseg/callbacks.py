"""What a run records: sample pictures, the scores of every image, a summary. Every call to a logger is here."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, distributed

from unetseg import figures
from unetseg.data.loading import Batch, Examples, collate
from unetseg.metrics import edge_bands, edge_table, errors_by_band, scores
from unetseg.model.segmenter import class_map
from unetseg.runs import RunFolder

if TYPE_CHECKING:
    import pandas as pd


class ProgressBar(RichProgressBar):
    """Lightning's bar without the logger's version number."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown behind the bar."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class SamplePictures(L.Callback):
    """Sends a few validation pictures, spread over the split, to W&B with the prediction and the truth as masks.

    Args:
        classes: names of the classes.
        count: number of pictures.
    """

    def __init__(self, classes: Sequence[str], count: int = 6):
        self.labels = {**dict(enumerate(classes)), 255: "ignored"}
        self.count = count

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Predict the pictures and log them."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        dataset: Examples = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        length = len(dataset)
        indices = np.unique(np.linspace(0, length - 1, min(self.count, length)).round().astype(int)).tolist()
        shown = predict_samples(trainer, module, dataset, indices)
        masks = [{"prediction": s.predicted, "truth": s.target} for s in shown]
        for logger in loggers:
            logger.log_image(
                "val/predictions",
                [sample.image for sample in shown],
                step=trainer.global_step,
                caption=[sample.name for sample in shown],
                masks=[
                    {name: {"mask_data": mask, "class_labels": self.labels} for name, mask in pair.items()}
                    for pair in masks
                ],
            )


class TestRecord(L.Callback):
    """Writes per_image.csv, edge_distance.csv and figures of both, and keeps the scores over the set.

    Under several processes each has counted its own images; together they have every image once.

    Args:
        run: the folder that is written to.
        each: how many images of the best, of the median and of the worst are drawn.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    def __init__(self, run: RunFolder, each: int = 2):
        self.run, self.each = run, each
        self.counts: dict[int, Tensor] = {}
        self.edges: dict[int, Tensor] = {}
        self.per_image: pd.DataFrame

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the counts of the batch's images."""
        indices, counts = batch.indices.tolist(), outputs["counts"]
        errors = errors_by_band(outputs["predicted"], batch.masks, edge_bands(batch.masks, counts.shape[1]))
        self.counts.update(zip(indices, counts.cpu(), strict=True))
        self.edges.update(zip(indices, errors.cpu(), strict=True))

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Bring all images together and write what is known of each."""
        import pandas as pd

        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, (self.counts, self.edges))
            for counts, edges in parts:
                self.counts |= counts
                self.edges |= edges
        self.counts = dict(sorted(self.counts.items()))
        dataset: Examples = trainer.test_dataloaders.dataset  # type: ignore[union-attr]
        examples = [dataset.examples[index] for index in self.counts]
        columns = {name: value.numpy() for name, value in scores(torch.stack([*self.counts.values()])).items()}
        self.per_image = pd.DataFrame(
            {"name": [e.name for e in examples], "group": [e.group for e in examples]}
            | {name: columns[name] for name in ("iou", "dice", "boundary_iou")}
        )
        if trainer.is_global_zero:
            self.per_image.to_csv(self.run.per_image, index=False)
            errors = edge_table(torch.stack([*self.edges.values()]).sum(0))
            errors.to_csv(self.run.edge_distance, index=False)
            figures.edge_distance({"": errors}, self.run.figures / "edge_distance.png")
            self._draw(trainer, module, dataset)

    def over_the_set(self) -> dict[str, float]:
        """Return the scores over all images, in float64."""
        counts = torch.stack([*self.counts.values()])
        named = {f"test/{name}": value.item() for name, value in scores(counts.sum(0)).items()}
        return {**named, "test/iou_per_image": float(self.per_image.iou.mean()), "test/images": len(counts)}

    def by_group(self) -> pd.DataFrame:
        """Return the scores over the images of each group, and the number of images."""
        import pandas as pd

        counts = torch.stack([*self.counts.values()])
        rows = []
        for group, members in self.per_image.groupby("group").indices.items():
            over_group = {name: value.item() for name, value in scores(counts[members].sum(0)).items()}
            over_group["iou_per_image"] = float(self.per_image.iou.iloc[members].mean())
            rows.append({"group": group, "images": len(members), **over_group})
        return pd.DataFrame(rows)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule, dataset: Examples) -> None:
        order = np.argsort(self.per_image.iou.to_numpy(), kind="stable")[::-1]
        middle = max(0, len(order) // 2 - self.each // 2)
        picked = {
            "best": order[: self.each],
            "median": order[middle : middle + self.each],
            "worst": order[-self.each :],
        }
        rows = list(dict.fromkeys((int(row), rank) for rank, rows in picked.items() for row in rows))
        indices = [list(self.counts)[row] for row, _ in rows]
        samples = predict_samples(trainer, module, dataset, indices)
        captions = [f"{rank}: IoU {self.per_image.iou[row]:.3f}" for row, rank in rows]
        figures.predictions(samples, captions, self.run.figures / "predictions.png")


class Cost(L.Callback):
    """What a training run costs: speed, memory and time.

    Speed is training images a second over the batches of all epochs but the first batch of each (it waits for the
    loader's processes to start); validation is not counted.
    """

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.images = 0
        self.training_seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take the time since the last batch."""
        now = time.perf_counter()
        if batch_idx > 0:
            self.images += len(batch.indices) * trainer.world_size
            self.training_seconds += now - self.last
        self.last = now

    def measured(self) -> dict[str, float]:
        """Return images_per_second, peak_memory (bytes: the device's, or this process's on a CPU) and seconds."""
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
        return {
            "images_per_second": self.images / self.training_seconds if self.images else 0.0,
            "peak_memory": memory,
            "seconds": time.perf_counter() - self.started,
        }


def predict_samples(
    trainer: L.Trainer, module: L.LightningModule, dataset: Examples, indices: Sequence[int]
) -> list[figures.Sample]:
    """Predict single examples of a data set, with the trainer's device and number format."""
    batch = collate([dataset.load(0, index) for index in indices])
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        predicted = class_map(module.get_submodule("model")(batch.images.to(module.device))).cpu()
    return [
        figures.Sample(
            name=dataset.examples[index].name,
            image=batch.images[row].permute(1, 2, 0).numpy(),
            target=batch.masks[row].numpy(),
            predicted=predicted[row].numpy(),
        )
        for row, index in enumerate(batch.indices.tolist())  # without those that can't be read
    ]
