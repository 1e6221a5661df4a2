"""Evaluate a checkpoint: the scores over a data set, of each breed and of each image, and a figure.

python -m unetseg.evaluate checkpoint=runs/NAME                                 the test split of the run's own data
python -m unetseg.evaluate checkpoint=runs/NAME data.border=ignore split=val    the same data, differently
python -m unetseg.evaluate checkpoint=FILE.ckpt data=folder data.root=FOLDER    other data
python -m unetseg.evaluate checkpoint=runs/NAME lesion=true                     what each long skip contributes
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetseg.errors import UserError
from unetseg.files import write_json
from unetseg.names import class_names
from unetseg.options import command
from unetseg.options.compose import values_of
from unetseg.options.schema import Evaluate
from unetseg.runs.folder import RunFolder, overrides_of, run_folder_of

if TYPE_CHECKING:
    import lightning as L

    from unetseg.model.segmenter import Segmenter


def evaluate(options: Evaluate) -> dict[str, Any]:
    """Score a checkpoint on a split; write the tables and figures of what was found, and return the summary."""
    from unetseg.data.sources import make_data
    from unetseg.evaluation import lesions
    from unetseg.evaluation.cost import cost
    from unetseg.evaluation.record import TestRecord
    from unetseg.model import checkpoint
    from unetseg.runs import summary
    from unetseg.training import build
    from unetseg.training.losses import make_loss
    from unetseg.training.module import SegmentationModule

    model, known = checkpoint.load(options.checkpoint)
    classes = class_names(options.data.model_dump())
    if len(classes) != len(known["classes"]):
        raise UserError(
            f"the checkpoint knows {len(known['classes'])} classes ({', '.join(known['classes'])}), "
            f"the data has {len(classes)} ({', '.join(classes)})",
            accepted="data with the same classes",
        )
    if options.lesion and not lesions.levels_to_cut(model):
        raise UserError(
            f"lesion=true: with skip={known['model']['skip']} no long skip of {options.checkpoint} carries features",
            accepted="a checkpoint with concat, add or attention at some level",
        )
    data = make_data(options.data.model_dump(), known["seed"], test_split=options.split)
    data.check()
    folder = RunFolder(output_folder(options))
    try:
        folder.path.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder.path} exists", accepted="a new folder", advice="another output=...") from None
    folder.figures.mkdir()
    module = SegmentationModule(model, make_loss(known["loss"], len(classes)), classes=len(classes))
    record = TestRecord(folder)
    trainer = build.make_trainer({"accelerator": options.accelerator, "devices": 1}, [], [record], folder.path)
    trainer.test(module, data, verbose=False)
    groups = record.by_group()
    if len(groups) > 1:
        groups.to_csv(folder.path / "per_group.csv", index=False)
    content = {
        **record.over_the_set(),
        **cost(module.model, options.data.size),
        "checkpoint": options.checkpoint,
        "split": options.split,
        "data": options.data.model_dump(),
        **{name: known["model"][name] for name in ("skip", "encoder")},
        "precision": str(trainer.precision),
        "folder": str(folder.path),
        **summary.provenance(),
    }
    write_json(folder.summary, content)
    summary.show_groups(groups, content)
    if options.lesion:
        measure_lesions(model, len(classes), data.loader(options.split, shuffle=True), trainer, folder)
    return content


def measure_lesions(model: Segmenter, classes: int, batches: Any, trainer: L.Trainer, folder: RunFolder) -> None:
    """Cut the long skips; write and show what was lost."""
    from rich.progress import track

    from unetseg.evaluation import lesions, plots
    from unetseg.runs import summary

    device = trainer.strategy.root_device
    with trainer.precision_plugin.forward_context():
        losses = lesions.measure(model.to(device).eval(), batches, classes, device=device, track=track)
    tables = lesions.tables(losses, [batches.dataset.examples[index].group for index in losses.indices])
    for name, table in tables.items():
        table.to_csv(folder.path / f"{name}.csv", index=False)
    plots.lesions(tables, folder.figures / "lesion.png")
    summary.show_lesions(tables)


def output_folder(options: Evaluate) -> Path:
    """Return `output`, or the first free of evaluation/DATA_SPLIT, _2, _3, ... in the run folder."""
    if options.output is not None:
        return Path(options.output)
    run = run_folder_of(options.checkpoint)
    parent = (run.path if run else Path(options.checkpoint).parent) / "evaluation"
    name = f"{options.data.name}_{options.split}"
    names = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    return next(parent / name for name in names if not (parent / name).exists())


def data_of_the_run(overrides: list[str]) -> list[str]:
    """Return the data options of the checkpoint's own run as overrides, unless the user names other data."""
    given = values_of(overrides)
    run = run_folder_of(given.get("checkpoint", ""))
    if run is None or "data" in given:
        return []
    return overrides_of(run, "data.")


def main() -> None:
    """Run from the command line."""
    command.run("evaluate", Evaluate, evaluate, inherit=data_of_the_run)


if __name__ == "__main__":
    main()
