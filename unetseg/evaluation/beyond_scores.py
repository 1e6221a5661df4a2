"""What an evaluation measures besides the scores: tables and a figure in its folder, and a summary on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from rich.progress import track

from unetseg.data.datamodule import SegmentationData
from unetseg.evaluation import freeu, lesions, score_plots, shifts
from unetseg.model.segmenter import Segmenter
from unetseg.runs import summary
from unetseg.runs.folder import RunFolder

if TYPE_CHECKING:
    import lightning as L


def measure_lesions(model: Segmenter, classes: int, batches: Any, trainer: L.Trainer, folder: RunFolder) -> None:
    """Cut the long skips; write and show the scores that are lost without them."""
    for level, width in enumerate(cast("list[int]", model.net.encoder.out_channels)[1:-1], start=1):
        if not width:
            print(f"level {level} is left out: the encoder has no features of stride {2**level}")
    device = trainer.strategy.root_device
    with trainer.precision_plugin.forward_context():
        losses = lesions.measure(model.to(device).eval(), batches, classes, device=device, track=track)
    tables = lesions.tables(losses, [batches.dataset.examples[index].group for index in losses.indices])
    for name, table in tables.items():
        table.to_csv(folder.path / f"{name}.csv", index=False)
    score_plots.lesions(tables, folder.figures / "lesion.png")
    summary.show_lesions(tables)


def measure_shifts(model: Segmenter, data: SegmentationData, split: str, trainer: L.Trainer, folder: RunFolder) -> None:
    """Score shifted pictures; write and show what is lost."""
    device, batches = trainer.strategy.root_device, data.loader(split)
    examples = batches.dataset.examples  # type: ignore[attr-defined]
    classes = len(data.collection.classes)  # type: ignore[union-attr]
    names = [example.name for example in examples]
    with trainer.precision_plugin.forward_context():
        found = shifts.measure(model.to(device).eval(), batches, names, classes, data.view, device=device, track=track)
    own = [examples[index] for index in found.indices]
    tables = shifts.tables(found, [example.name for example in own], [example.group for example in own])
    for name, table in tables.items():
        table.to_csv(folder.path / f"{name}.csv", index=False)
    score_plots.shifts(tables["shift"], folder.figures / "shift.png")
    summary.show_shifts(tables["shift"])


def measure_freeu(
    model: Segmenter, classes: int, factors: list[float], batches: Any, trainer: L.Trainer, folder: RunFolder
) -> None:
    """Weigh the deep path and the long skips by FreeU's factors; write and show how the scores change."""
    device = trainer.strategy.root_device
    variants = freeu.variants(lesions.levels_to_cut(model), *factors)
    with trainer.precision_plugin.forward_context():
        counts, indices = freeu.measure(model.to(device).eval(), batches, classes, variants, device=device, track=track)
    table = freeu.table(counts, variants, [batches.dataset.examples[index].group for index in indices])
    table.to_csv(folder.path / "freeu.csv", index=False)
    summary.show_freeu(table)
