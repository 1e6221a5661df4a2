"""The record of a test: the scores of every image, errors by distance to the edge, and figures of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, distributed, nn

from unetseg.data.channels import displayed
from unetseg.data.dataset import Batch, Examples, collate, split_skipped
from unetseg.data.transforms import resize_image
from unetseg.evaluation import plots
from unetseg.evaluation.metrics import class_table, confusion, edge_bands, edge_table, errors_by_band, scores
from unetseg.evaluation.overlays import Sample
from unetseg.evaluation.statistics import best_median_worst
from unetseg.evaluation.whole import answer
from unetseg.names import cell
from unetseg.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


class TestRecord(L.Callback):
    """Writes per_image.csv, per_class.csv, confusion.csv, edge_distance.csv and figures, and keeps the set's scores.

    Each of several processes counts its own images; together they have every image once.

    Args:
        run: the folder that is written to.
        each: how many of the best, the median and the worst images are drawn.
    """

    __test__ = False  # not a test class, which pytest would conclude from the name

    def __init__(self, run: RunFolder, each: int = 2):
        self.run, self.each = run, each
        self.counts: dict[int, Tensor] = {}
        self.edges: dict[int, Tensor] = {}
        self.confusion: Tensor | int = 0
        self.per_image: pd.DataFrame
        self.per_class: pd.DataFrame

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
        self.confusion += confusion(outputs["predicted"], batch.masks, counts.shape[1]).cpu()

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Gather the counts of all processes and write the tables and figures."""
        import pandas as pd

        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, (self.counts, self.edges, self.confusion))
            self.confusion = sum(confused for _, _, confused in parts)
            for counts, edges, _ in parts:
                self.counts |= counts
                self.edges |= edges
        self.counts = dict(sorted(self.counts.items()))
        dataset: Examples = trainer.test_dataloaders.dataset  # type: ignore[union-attr]
        examples = [dataset.examples[index] for index in self.counts]
        columns = {name: value.numpy() for name, value in scores(torch.stack([*self.counts.values()])).items()}
        self.per_image = pd.DataFrame(
            {"name": [cell(e.name) for e in examples], "group": [cell(e.group) for e in examples]}
            | {name: columns[name] for name in ("iou", "dice", "boundary_iou")}
        )
        names = [cell(name) for name in trainer.datamodule.collection.classes]  # type: ignore[attr-defined]
        self.per_class = class_table(torch.stack([*self.counts.values()]).numpy(), names)
        if trainer.is_global_zero:
            self.per_image.to_csv(self.run.per_image, index=False)
            self.per_class.to_csv(self.run.per_class, index=False)
            table = pd.DataFrame(torch.as_tensor(self.confusion).numpy(), pd.Index(names, name="true"), names)
            table.to_csv(self.run.confusion)
            plots.confusion(table, self.run.figures / "confusion.png")
            edges = torch.stack([*self.edges.values()]).numpy()
            errors = edge_table(edges, list(self.per_image.group))
            errors.to_csv(self.run.edge_distance, index=False)
            by_image = pd.DataFrame(edges.reshape(-1, 2), columns=["pixels", "errors"])
            by_image.insert(0, "name", self.per_image.name.repeat(edges.shape[1]).to_numpy())
            by_image.insert(1, "from_px", [*errors.from_px] * len(edges))
            by_image.to_csv(self.run.edge_distance_per_image, index=False)
            plots.edge_distance(errors, self.run.figures / "edge_distance.png")
            self._draw(trainer, module, dataset)

    def set_scores(self) -> dict[str, float]:
        """Return the scores over all images, in float64."""
        counts = torch.stack([*self.counts.values()])
        over_set = {f"test/{name}": value.item() for name, value in scores(counts.sum(0)).items()}
        return {**over_set, "test/iou_per_image": float(self.per_image.iou.mean()), "test/images": len(counts)}

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
        iou = self.per_image.iou
        ranks = best_median_worst(iou.to_numpy(), self.each)
        positions = list(self.counts)
        with trainer.precision_plugin.forward_context():
            samples = predict_samples(module.get_submodule("model"), dataset, [positions[row] for row in ranks])
        captions = [f"{rank}: IoU {iou[row]:.3f}" for row, rank in ranks.items()]
        plots.predictions(samples, captions, self.run.figures / "predictions.png")


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
