"""Evaluate a checkpoint: the scores over a data set, of each breed and of each image, and a figure.

python -m unetseg.evaluate checkpoint=runs/NAME                 the test split of the run's own data
python -m unetseg.evaluate checkpoint=runs/NAME data.border=ignore split=val    differently scored
python -m unetseg.evaluate checkpoint=FILE.ckpt data=folder data.root=FOLDER    other data
python -m unetseg.evaluate checkpoint=FILE.ckpt data=folder data.root=FOLDER split=all    all of it
python -m unetseg.evaluate checkpoint=runs/NAME lesion=true     what each long skip contributes
python -m unetseg.evaluate checkpoint=runs/NAME shift=true      on noisy, blurred, pale ... pictures
python -m unetseg.evaluate checkpoint=runs/NAME freeu=[1.2,0.9]    deep path and skips weighed
python -m unetseg.evaluate checkpoint=runs/NAME mechanism=[rank]    what meets at fusions
python -m unetseg.evaluate checkpoint=runs/NAME mechanism=[landscape]    the loss around the weights
python -m unetseg.evaluate checkpoint=runs/NAME gradient=true   path lengths of the gradient
python -m unetseg.evaluate checkpoint=runs/NAME tolerance=1     NSD within one pixel

In Python: evaluation = unetseg.evaluate(checkpoint="runs/NAME", split="val")
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unetseg import classes as own_classes
from unetseg.errors import UserError, first_line
from unetseg.files import write_json
from unetseg.names import AT_FUSIONS, class_names, counted, is_own
from unetseg.options import command, recorded
from unetseg.options.call import CallableModule, Option, interruptible, overrides_of
from unetseg.options.command_schema import Evaluate
from unetseg.options.compose import values_of
from unetseg.options.data_schema import DATA
from unetseg.options.messages import format_value, one_of
from unetseg.options.output import check_writable, explain_write_errors
from unetseg.options.validation import validate
from unetseg.runs.folder import RunFolder, run_folder_of

if TYPE_CHECKING:
    import lightning as L
    import pandas as pd

    from unetseg.data.datamodule import SegmentationData
    from unetseg.model.segmenter import Segmenter
    from unetseg.runs.run import Evaluation
    from unetseg.training.module import SegmentationModule


def call(*overrides: str, **options: Option) -> Evaluation:
    """Score a checkpoint, and return the scores: what `unetseg.evaluate(...)` does.

    Args:
        overrides: options as on the command line, such as "data.border=ignore".
        options: those without a dot: checkpoint (a run folder or a file), data, split, lesion, shift, freeu,
            mechanism, gradient, tolerance, accelerator, output.

    Raises:
        UserError: an option is wrong; the text says what is accepted and what to try.

    Examples:
        unetseg.evaluate(checkpoint="runs/NAME", split="val").summary["test/iou"]  # 0.913
    """
    from unetseg.runs.run import Evaluation

    given = overrides_of(overrides, options, "checkpoint=runs/NAME")
    with interruptible("evaluate", given):
        checked = command.options_of("evaluate", Evaluate, given, inherit=options_of)
        return Evaluation(evaluate(checked)["folder"])


def evaluate(options: Evaluate) -> dict[str, Any]:
    """Score a checkpoint on a split; write tables and figures of the scores, and return the summary."""
    from unetseg.training.surroundings import kept

    with kept():
        return _evaluate(options)


def _evaluate(options: Evaluate) -> dict[str, Any]:
    from unetseg.data.sources import make_data
    from unetseg.evaluation import beyond_scores, freeu, lesions, mechanisms
    from unetseg.evaluation.cost import cost
    from unetseg.evaluation.record import TestRecord
    from unetseg.gradients.short import residual_blocks
    from unetseg.model import checkpoint
    from unetseg.runs import summary
    from unetseg.training import build
    from unetseg.training.losses import make_loss
    from unetseg.training.module import SegmentationModule
    from unetseg.training.precision import describe, scoring_precision

    file = checkpoint.checkpoint_file(options.checkpoint)
    model, known = checkpoint.load(file, trust=options.trust, as_trained=True)
    if is_own(known["loss"]):
        own_classes.admit({known["loss"]: "loss"}, options.checkpoint, options.trust)
    others = filter(is_own, (known["loss"], getattr(options.data, "source", None)))
    own_classes.say_changed(known.get("code"), others, options.checkpoint)
    classes = class_names(options.data.model_dump())
    if list(classes) != known["classes"]:
        raise UserError(
            f"the checkpoint knows {len(known['classes'])} classes ({', '.join(known['classes'])}), "
            f"the data has {len(classes)} ({', '.join(classes)})",
            accepted="data with the same classes in the same order",
            advice=f"data.classes=[{','.join(known['classes'])}], where that is what the masks hold",
        )
    channels, known_channels = options.data.channels or 3, known["data"].get("channels") or 3
    if channels != known_channels:
        raise UserError(
            f"the checkpoint was trained on {known_channels} channels, the data has data.channels={channels}",
            accepted="pictures like those of the training",
            advice=f"data.channels={known_channels}",
        )
    if options.lesion and not lesions.levels_to_cut(model):
        raise UserError(
            f"lesion=true: with skip={known['model']['skip']} no long skip of {options.checkpoint} carries features",
            accepted="a checkpoint with another skip than placebo and none at some level, and no skip_flow=backward",
        )
    if options.shift and known_channels != 3:
        raise UserError(
            f"shift=true: the pictures of {options.checkpoint} have {counted(known_channels, 'channel')}",
            accepted="a checkpoint of pictures with three channels, RGB",
        )
    if options.freeu and (reason := freeu.refusal(model)):
        raise UserError(
            f"freeu={format_value(options.freeu)}: {reason} in {options.checkpoint}",
            accepted="a checkpoint with concat, add or another kind by level, and no decoder of your own",
        )
    met = [name for name in options.mechanism if name in AT_FUSIONS]
    if met and (reason := mechanisms.refusal(model, met)):
        raise UserError(
            f"mechanism=[{','.join(met)}]: {reason} in {options.checkpoint}",
            accepted="a checkpoint with concat, or another kind by level, or other mechanisms",
        )
    if options.gradient and not residual_blocks(model.net.encoder):
        raise UserError(
            f"gradient=true: the encoder of {options.checkpoint}, {known['model']['encoder']}, has no residual blocks",
            accepted="a checkpoint of a ResNet, or of another encoder with residual blocks, with short_skips=true",
        )
    measured = {name: known["data"].get(name) for name in ("mean", "std", "bands")}
    for name, value in measured.items():
        given = getattr(options.data, name, None)
        if given is not None and given != value:
            raise UserError(
                f"data.{name}={given}, by which the model wasn't trained",
                accepted=f"{value}, which the checkpoint states" if value else "null, as in training",
                advice="data.bands=null" if name == "bands" else "data.mean=null data.std=null",
            )
    data = make_data(options.data.model_dump() | measured, known["seed"], test_split=options.split, trust=True)
    data.check()
    check_pictures(options, data)
    training = training_pictures(options, known) if "hellinger" in options.mechanism else None
    norms = feature_norms(options) if "oscillation" in options.mechanism else None
    folder = RunFolder(output_folder(options))
    if os.path.lexists(folder.path):
        raise UserError(f"{folder.path} exists", accepted="a new folder", advice="another output=...")
    check_writable(folder.path)
    weights = {name: known.get(name) for name in ("class_weights", "boundary_weight")}
    loss = make_loss(known["loss"], len(classes), **weights, trust=options.trust)
    if is_own(known["loss"]):
        checkpoint.load_loss(file, loss)
    module = SegmentationModule(model, loss, classes=len(classes), view=data.view)
    record = TestRecord(folder, tolerance=options.tolerance)
    precision = scoring_precision(known["precision"], options.accelerator)
    arguments = {"accelerator": options.accelerator, "devices": 1, "precision": precision}
    trainer = build.make_trainer(arguments, [], [record], folder.path)
    print(describe(str(trainer.precision), known["precision"]))
    with explain_write_errors(folder.path), new_folder(folder):
        trainer.test(module, data, verbose=False)
    groups = record.by_group()
    if len(groups) > 1:
        groups.to_csv(folder.path / "per_group.csv", index=False)
    content = {
        **record.set_scores(),
        **cost(module.model, data.view.side, data.view.channels),
        "checkpoint": str(file),
        "split": options.split,
        "data": options.data.model_dump(),
        **{name: known["model"].get(name) for name in ("skip", "encoder", "decoder")},
        "precision": str(trainer.precision),
        "folder": str(folder.path),
        **summary.provenance(),
    }
    write_json(folder.summary, content)
    if len(classes) > 2:
        summary.show_classes(record.per_class)
    summary.show_groups(groups, content)
    summary.show_surfaces(content)
    print(folder.path)
    if options.lesion:
        beyond_scores.measure_lesions(
            model, len(classes), data.loader(options.split, shuffle=True, crops=True), trainer, folder
        )
    if options.shift:
        beyond_scores.measure_shifts(model, data, options.split, trainer, folder)
    if options.freeu:
        beyond_scores.measure_freeu(
            model, len(classes), options.freeu, data.loader(options.split, crops=True), trainer, folder
        )
    if options.mechanism:
        measure_mechanisms(module, options, data, trainer, folder, training=training, norms=norms)
    if options.gradient:
        measure_path_lengths(module, data.loader(options.split, crops=True), trainer, folder)
    return content


def check_pictures(options: Evaluate, data: SegmentationData) -> None:
    """Raise a UserError where something is asked for that takes two pictures, and the split has one."""
    pairs = {"lesion=true": options.lesion, "mechanism=[shattering]": "shattering" in options.mechanism}
    asked = [name for name, is_asked in pairs.items() if is_asked]
    if asked and data.examples_of(options.split) < 2:
        raise UserError(
            f"{asked[0]}: split={options.split} has one picture",
            accepted="two pictures or more: it takes the features of another one, or goes from one to the other",
            advice="split=all, or the same without it",
        )


def measure_path_lengths(module: SegmentationModule, batches: Any, trainer: L.Trainer, folder: RunFolder) -> None:
    """Write and show the gradient's shares by the number of residual branches on its way."""
    from rich.progress import track

    from unetseg.evaluation import gradient_plots, path_lengths
    from unetseg.gradients.path_lengths import gradient_by_path_length
    from unetseg.runs import summary

    device = trainer.strategy.root_device
    module.to(device).eval()
    model = cast("Segmenter", module.model)
    try:
        products, indices = path_lengths.measure(
            model, batches, module.loss, gradient_by_path_length, device=device, track=track
        )
    except ValueError as error:  # of an encoder whose residual blocks are no chain
        raise UserError(f"gradient=true: {first_line(error)}", accepted="a checkpoint of a ResNet") from None
    table = path_lengths.table(products, [batches.dataset.examples[index].group for index in indices])
    table.to_csv(folder.path / "path_lengths.csv", index=False)
    gradient_plots.path_lengths(table, folder.figures / "path_lengths.png")
    summary.show_path_lengths(table)


def training_pictures(options: Evaluate, known: dict[str, Any]) -> SegmentationData:
    """Return the training pictures of a checkpoint's own data, to which others are compared."""
    from unetseg.data.sources import make_data

    own, given = known["data"], options.data.model_dump()
    if options.split == "train" and all(own.get(name) == given.get(name) for name in ("name", "root", "source")):
        raise UserError(
            "mechanism=[hellinger] with split=train: these are the pictures that the others are compared with",
            accepted="another split of the checkpoint's data, or other data",
            advice="split=test",
        )
    data = make_data(own, known["seed"], test_split="train", trust=options.trust)
    data.check()
    data.prepare_data()
    data.setup()
    return data


def feature_norms(options: Evaluate) -> pd.DataFrame:
    """Return the norms of the features that the training of a checkpoint has noted."""
    from unetseg.evaluation import oscillation
    from unetseg.runs.tables import read_gradient_flow

    run = run_folder_of(options.checkpoint)
    norms = oscillation.norms(read_gradient_flow(run)) if run else None
    if norms is None or norms.empty:
        raise UserError(
            f"mechanism=[oscillation]: the run folder of {options.checkpoint} has no norms of features",
            accepted="a run that noted them while it trained: with gradients.every_n_steps=N, with a skip that has "
            "fusions, and not by an earlier version",
            advice="python -m unetseg.train ... gradients.every_n_steps=25",
        )
    return norms


def measure_mechanisms(
    module: SegmentationModule,
    options: Evaluate,
    data: SegmentationData,
    trainer: L.Trainer,
    folder: RunFolder,
    **more: Any,
) -> None:
    """Measure the mechanisms that were asked for; write and show them. `more` is what some of them need besides."""
    import torch
    from rich.progress import track

    from unetseg.evaluation import mechanism_plots
    from unetseg.evaluation.measurements import mechanism_tables
    from unetseg.runs import summary

    device = trainer.strategy.root_device
    module.to(device, torch.float32).eval()
    model = cast("Segmenter", module.model)
    # in single precision, also of a training in bfloat16, and on a GPU without TF32: the loss's differences are small
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        tables = mechanism_tables(
            model, module.loss, options.mechanism, data, options.split, **more, device=device, track=track
        )
    for name, table in tables.items():
        table.to_csv(folder.path / f"{name}.csv", index=False)
        if len(table) and name in mechanism_plots.DRAW:
            mechanism_plots.DRAW[name](table, folder.figures / f"{name}.png")
        summary.show_mechanism(name, table)


@contextmanager
def new_folder(folder: RunFolder) -> Iterator[None]:
    """Make the folder for the results; remove it again where the block fails before anything is written into it."""
    paths = (folder.figures, folder.path, *folder.path.absolute().parents)
    absent = [path for path in paths if not path.exists()]
    folder.figures.mkdir(parents=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it isn't empty
            for path in absent:
                path.rmdir()
        raise


def output_folder(options: Evaluate) -> Path:
    """Return `output`, or the first free of evaluation/DATA_SPLIT, _2, _3, ... in the run folder."""
    if options.output is not None:
        return Path(options.output)
    run = run_folder_of(options.checkpoint)
    parent = (run.path if run else Path(options.checkpoint).parent) / "evaluation"
    if parent.is_symlink():
        raise UserError(f"{parent} is a link", accepted="a folder of its own", advice="output=FOLDER")
    name = f"{options.data.name}_{options.split}"
    names = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    return next(parent / name for name in names if not (parent / name).exists())


KEPT_FOR_OTHER_DATA = (
    *("size", "fit", "crop", "scale", "channels", "range", "mean", "std", "shown", "bands"),
    *("batch_size", "target", "border"),
)
"""The data options of a run that hold for other data sets too."""


def options_of(overrides: list[str]) -> Evaluate | None:
    """Return the options of an evaluation: those of the checkpoint's data, changed by the overrides.

    They are read from the config.yaml of its run folder, or from the checkpoint where it lies outside of its folder.

    Args:
        overrides: of the command line.

    Returns:
        The options; None where the overrides name no checkpoint that exists, or no data set.
    """
    values = values_of(overrides)
    path = Path(values.get("checkpoint", ""))
    if not values.get("checkpoint") or not path.exists():
        return None
    run = run_folder_of(path)
    if run is not None:
        data = recorded.read_training(run.config)["data"]
    else:
        from unetseg.model import checkpoint

        data = checkpoint.read_hyper_parameters(path)["data"]
    name = values.get("data", data["name"])
    if name not in list(DATA):
        return None  # whose message comes from Hydra
    base = recorded.defaults("evaluate", Evaluate, name)
    base["data"] |= data if name == data["name"] else _for_other_data(data, name)
    options = recorded.apply_overrides("evaluate", Evaluate, base, overrides)
    source = getattr(options.data, "source", None)
    if source is not None and "data.source" not in values:  # it is the file's, not typed
        own_classes.admit({source: "data.source"}, path, options.trust)
    return options


def _for_other_data(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a run's data options that hold for another data set: how the model sees pictures, and its classes."""
    own_name = one_of(data["name"], [str(known) for known in DATA])
    own = recorded.defaults("evaluate", Evaluate, own_name)["data"] | data | {"root": "."}  # the run's may be gone
    known = validate(DATA[own_name], own).model_dump()
    kept = {key: known[key] for key in KEPT_FOR_OTHER_DATA if key in known and key in DATA[name].model_fields}
    return kept | ({"classes": list(class_names(known))} if "classes" in DATA[name].model_fields else {})


def main() -> None:
    for summary in command.run("evaluate", Evaluate, evaluate, inherit=options_of, about=__doc__):
        checkpoint = shlex.quote(str(summary["checkpoint"]))
        print(f"next: the pictures in {summary['folder']}/figures")
        trust = " trust=true" if any(given.lower() == "trust=true" for given in sys.argv) else ""
        print(f"      python -m unetseg.demo checkpoint={checkpoint}{trust}")


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    main()
