"""The record of a test: the scores of every image, errors by distance to the edge, and figures of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, distributed, nn

from unetseg.data.channels import displayed
from unetseg.data.dataset import Batch, Examples, collate, split_skipped
from unetseg.data.transforms import resize_image
from unetseg.evaluation import score_plots
from unetseg.evaluation.calibration import calibration_error, calibration_table
from unetseg.evaluation.metrics import class_table, confusion, edge_bands, edge_table, errors_by_band, scores
from unetseg.evaluation.overlays import Sample
from unetseg.evaluation.statistics import best_median_worst
from unetseg.evaluation.surfaces import (
    TOLERANCE,
    means_over_classes,
    set_scores,
    surface_scores,
    surface_table,
)
from unetseg.evaluation.whole import answer
from unetseg.names import cell
from unetseg.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


class TestRecord(L.Callback):
    """Writes the tables and figures of a test, and keeps the set's scores.

    The tables are per_image.csv, per_class.csv, confusion.csv, calibration.csv and edge_distance.csv.

    Each of several processes counts its own images; together they have every image once.

    Args:
        run: the folder that is written to.
        each: how many of the best, the median and the worst images are drawn.
        tolerance: pixels by which a surface may be off for NSD.
    """

    __test__ = False  # not a test class, which pytest would conclude from the name

    def __init__(self, run: RunFolder, each: int = 2, tolerance: float = TOLERANCE):
        self.run, self.each, self.tolerance = run, each, tolerance
        self.images: dict[int, tuple[Tensor, Tensor, np.ndarray]] = {}
        """The counts, the errors by distance to the edge and the surface scores of each image, by its position."""
        self.sums: tuple[Tensor | int, Tensor | int] = 0, 0
        """The confusion matrix, and the counts by confidence."""
        self.counts: Tensor
        self.surfaces: np.ndarray
        self.per_image: pd.DataFrame
        self.per_class: pd.DataFrame
        self.calibration: pd.DataFrame

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is counted of the batch's images."""
        counts, predicted = outputs["counts"], outputs["predicted"]
        classes = counts.shape[1]
        errors = errors_by_band(predicted, batch.masks, edge_bands(batch.masks, classes))
        surfaces = surface_scores(predicted, batch.masks, classes, self.tolerance)
        of_images = zip(counts.cpu(), errors.cpu(), surfaces, strict=True)
        self.images.update(zip(batch.indices.tolist(), of_images, strict=True))
        confused, confidences = self.sums
        confused += confusion(predicted, batch.masks, classes).cpu()
        self.sums = confused, confidences + outputs["confidences"].cpu()

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Gather the counts of all processes and write the tables and figures."""
        import pandas as pd

        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, (self.images, self.sums))
            self.images = {index: image for images, _ in parts for index, image in images.items()}
            self.sums = sum(sums[0] for _, sums in parts), sum(sums[1] for _, sums in parts)
        self.images = dict(sorted(self.images.items()))
        of_counts, of_edges, of_surfaces = zip(*self.images.values(), strict=True)
        self.counts, self.surfaces = torch.stack(of_counts), np.stack(of_surfaces)
        confused, confidences = map(torch.as_tensor, self.sums)
        dataset: Examples = trainer.test_dataloaders.dataset  # type: ignore[union-attr]
        examples = [dataset.examples[index] for index in self.images]
        columns = {name: value.numpy() for name, value in scores(self.counts).items()}
        columns["hd95"], columns["nsd"] = means_over_classes(self.surfaces).T
        self.per_image = pd.DataFrame(
            {"name": [cell(e.name) for e in examples], "group": [cell(e.group) for e in examples]} | columns
        )
        names = [cell(name) for name in trainer.datamodule.collection.classes]  # type: ignore[attr-defined]
        self.per_class = class_table(self.counts.numpy(), names).join(surface_table(self.surfaces))
        self.calibration = calibration_table(confidences.numpy())
        if trainer.is_global_zero:
            self.per_image.to_csv(self.run.per_image, index=False)
            self.per_class.to_csv(self.run.per_class, index=False)
            table = pd.DataFrame(confused.numpy(), pd.Index(names, name="true"), names)
            table.to_csv(self.run.confusion)
            score_plots.confusion(table, self.run.figures / "confusion.png")
            self.calibration.to_csv(self.run.calibration, index=False)
            score_plots.calibration(self.calibration, self.run.figures / "calibration.png")
            edges = torch.stack(of_edges).numpy()
            errors = edge_table(edges, list(self.per_image.group))
            errors.to_csv(self.run.edge_distance, index=False)
            by_image = pd.DataFrame(edges.reshape(-1, 2), columns=["pixels", "errors"])
            by_image.insert(0, "name", self.per_image.name.repeat(edges.shape[1]).to_numpy())
            by_image.insert(1, "from_px", [*errors.from_px] * len(edges))
            by_image.to_csv(self.run.edge_distance_per_image, index=False)
            score_plots.edge_distance(errors, self.run.figures / "edge_distance.png")
            self._draw(trainer, module, dataset)

    def set_scores(self) -> dict[str, float]:
        """Return the scores over all images, in float64."""
        over_set = {name: value.item() for name, value in scores(self.counts.sum(0)).items()}
        over_set |= {"iou_per_image": float(self.per_image.iou.mean()), "images": len(self.counts)}
        over_set |= {**set_scores(self.surfaces), "nsd_tolerance": self.tolerance}
        over_set["ece"] = calibration_error(self.calibration)
        return {f"test/{name}": value for name, value in over_set.items()}

    def by_group(self) -> pd.DataFrame:
        """Return the scores over the images of each group, and the number of images."""
        import pandas as pd

        rows = []
        for group, members in self.per_image.groupby("group").indices.items():
            over_group = {name: value.item() for name, value in scores(self.counts[members].sum(0)).items()}
            over_group["iou_per_image"] = float(self.per_image.iou.iloc[members].mean())
            over_group |= set_scores(self.surfaces[members])
            rows.append({"group": group, "images": len(members), **over_group})
        return pd.DataFrame(rows)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule, dataset: Examples) -> None:
        iou = self.per_image.iou
        ranks = best_median_worst(iou.to_numpy(), self.each)
        positions = list(self.images)
        with trainer.precision_plugin.forward_context():
            samples = predict_samples(module.get_submodule("model"), dataset, [positions[row] for row in ranks])
        captions = [f"{rank}: IoU {iou[row]:.3f}" for row, rank in ranks.items()]
        classes = trainer.datamodule.collection.classes  # type: ignore[attr-defined]
        score_plots.predictions(samples, captions, classes, self.run.figures / "predictions.png")


@torch.inference_mode()
def predict_samples(model: nn.Module, dataset: Examples, indices: Sequence[int]) -> list[Sample]:
    """Return examples of a data set with a model's predictions, without examples that can't be read.

    Args:
        model: maps BxDxhxw to logits, BxKxhxw, on its own device.
        dataset: the examples.
        indices: their positions.
    """
    view, device = dataset.transform.view, next(model.parameters()).device
    read, _ = split_skipped([dataset.load(0, index) for index in indices])
    batches = [collate([item]) for item in read] if view.crop is not None else [collate(list(read))]
    samples = []
    for batch in batches:
        size = (batch.masks.shape[1], batch.masks.shape[2])
        _, predicted = answer(model, batch.images.to(device), view, size, batch_size=4)
        for row, index in enumerate(batch.indices.tolist()):
            image = displayed(batch.images[row].permute(1, 2, 0).numpy(), view)
            samples.append(
                Sample(
                    name=dataset.examples[index].name,
                    image=resize_image(image, *size),
                    target=batch.masks[row].numpy(),
                    predicted=predicted[row].cpu().numpy(),
                )
            )
    return samples
