"""From validated options to the objects of a training: the one file that knows all of them."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from unetseg import classes, launch
from unetseg.data import samples
from unetseg.data.datamodule import SegmentationData
from unetseg.data.view import View
from unetseg.errors import UserError, first_line
from unetseg.files import free_path
from unetseg.model import checkpoint
from unetseg.model.auxiliary import AuxiliaryHeads, MaskHeads
from unetseg.model.encoders import check_side
from unetseg.model.own import check_nodes
from unetseg.model.segmenter import Segmenter
from unetseg.model.skips import Shuffled
from unetseg.model.transfer import MATCHED, MatchedParts, load_weights
from unetseg.model.unet import SkipUnet
from unetseg.names import DENSENETS, RESNETS, class_names, counted
from unetseg.options.messages import format_value
from unetseg.options.schema import Train
from unetseg.options.settings import own_classes
from unetseg.runs.folder import RunFolder, has_weights, options_of
from unetseg.runs.metrics_csv import LongCsv
from unetseg.runs.mlflow_run import mlflow_logger
from unetseg.runs.tensorboard_run import tensorboard_logger
from unetseg.runs.wandb_run import flat_config, wandb_logger
from unetseg.training.callbacks import EpochLines, SamplePictures, progress_callback
from unetseg.training.distributed import JointBatchNorm
from unetseg.training.flow_readings import FlowReadings
from unetseg.training.freezing import Thaw, hold
from unetseg.training.guards import Guard
from unetseg.training.losses import balanced_weights, make_loss
from unetseg.training.module import SegmentationModule
from unetseg.training.optimization import Optimization
from unetseg.training.precision import best_precision, is_cpu, recorded_precision
from unetseg.training.preflight import no_weights
from unetseg.training.resume import AtomicIO
from unetseg.training.steering import AverageWeights, EarlyStop

SHEET_PICTURES = 4
"""Training pictures on the page of augmented ones."""


def make_module(
    options: Train, view: View | None = None, class_weights: list[float] | None = None
) -> SegmentationModule:
    """Return the untrained module; print which encoder weights matched where they come from a file.

    Args:
        options: of the run.
        view: how the model sees pictures, with what was measured of their channels; None: as the options state it.
        class_weights: those that were measured; None: as the options state them.
    """
    stated = options.class_weights
    class_weights = stated if isinstance(stated, list) else class_weights
    view = view or View.of(options.data.model_dump())
    weights = None if has_weights(options) else options.model.weights
    first = "imagenet" if weights == "imagenet" else None
    try:
        model = Segmenter(weights=first, mean=view.mean, std=view.std, **segmenter_arguments(options))
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds of errors when a download fails
        if weights != "imagenet":
            raise
        raise no_weights(options.model.encoder, first_line(error)) from None
    if weights not in (None, "imagenet"):
        names = class_names(options.data.model_dump())
        matched = load_weights(model, weights, names, strict=options.model.strict_weights, trust=options.trust)
        if launch.is_first():
            print(f"{weights}:\n{matched}" if isinstance(matched, MatchedParts) else f"{weights}: {matched}")
            is_random = isinstance(matched, MatchedParts) and matched.parts["encoder"] != MATCHED
            if is_random and options.optimizer.encoder_lr_factor is None:
                factor = options.encoder_lr_factor
                print(f"the encoder, though random, has {factor:g} of lr: optimizer.encoder_lr_factor=1 gives it all")
    if options.model.encoder not in RESNETS + DENSENETS:
        check_side(model.net.encoder, options.model.encoder, view.side)
    if options.guards.unreadable_image == "skip":
        for fusion in model.modules():
            if isinstance(fusion, Shuffled):
                fusion.zeros_alone = True
    check_levels(options, model.net)
    if options.model.freeze_encoder:
        hold(model.net.encoder)
    if options.compile:
        model.compile()  # in place, so that a checkpoint's keys stay the same
    classes = len(class_names(options.data.model_dump()))
    outputs = 1 if classes == 2 else classes
    auxiliary, deep_supervision = None, None
    if options.model.auxiliary:
        auxiliary = AuxiliaryHeads(cast(list[int], model.net.encoder.out_channels), outputs)
    if options.model.deep_supervision:
        if options.model.decoder is not None:
            check_nodes(model.net.decoder, options.model.decoder, cast(list[int], model.net.encoder.out_channels))
        deep_supervision = MaskHeads(cast(Any, model.net.decoder).node_channels, outputs)
    return SegmentationModule(
        model,
        make_loss(
            options.loss, classes, trust=True, class_weights=class_weights, boundary_weight=options.boundary_weight
        ),
        classes=classes,
        lr=options.optimizer.lr,
        optimization=Optimization(
            **options.optimizer.model_dump(exclude={"lr", "lr_scaling", "ema", "encoder_lr_factor"}),
            encoder_lr_factor=options.encoder_lr_factor,
        ),
        hyper_parameters=hyper_parameters(options, view, class_weights),
        view=view,
        skip_nonfinite=options.guards.nonfinite_loss == "skip",
        auxiliary=auxiliary,
        deep_supervision=deep_supervision,
    )


def check_levels(options: Train, net: SkipUnet) -> None:
    """Raise a UserError where an option is of a level at which the encoder has no features, or changes none.

    A kind or a flow may stand at such a level where the list has it at another level, too.
    """
    widths = cast(list[int], net.encoder.out_channels)[1:-1]
    for name in ("skip_gradient", "skip_scale"):
        value = getattr(options.model, name)
        if isinstance(value, list):
            fitting = [own if width else 1.0 for own, width in zip(value, widths, strict=True)]
            if fitting != value:
                level = widths.index(0) + 1
                raise UserError(
                    f"model.{name}={format_value(value)}: {options.model.encoder} has no features at level {level}",
                    accepted="1 there: there is nothing to multiply",
                    advice=f"model.{name}={format_value(fitting)}",
                )
    scale = options.model.skip_scale
    if scale != 1 and all(isinstance(fusion.scale, nn.Identity) for fusion in net.fusions):
        raise UserError(
            f"model.skip_scale={scale} changes nothing: no level that it would scale has a skip with features",
            accepted="model.skip_scale=1",
            advice="a long skip at a coarser level",
        )
    for name, neutral in (("skip", "none"), ("skip_flow", "both")):
        value = getattr(options.model, name)
        if isinstance(value, list) and not options.model.stem_skip:  # which is as level 1 is
            seen = {neutral, *(own for own, width in zip(value, widths, strict=True) if width)}
            fitting = [own if own in seen else neutral for own in value]
            if fitting != value:
                raise UserError(
                    f"model.{name}={format_value(value)}: {options.model.encoder} has no features at level "
                    f"{widths.index(0) + 1}, where {value[widths.index(0)]} changes nothing",
                    accepted=f"{neutral} there",
                    advice=f"model.{name}={format_value(fitting)}",
                )


def measured_class_weights(options: Train, data: SegmentationData) -> list[float] | None:
    """Return the weights of the classes that class_weights=balanced makes, and print them; None without it.

    A run that is resumed goes on with those in its checkpoint, also where its masks have changed.
    """
    if options.class_weights != "balanced":
        return None
    weights = _recorded_class_weights(options) or balanced_weights(data.class_pixels("train"))
    if launch.is_first():
        names = class_names(options.data.model_dump())
        texts = [f"{name} {w:.4g}" if w else f"{name} 0 (no pixel)" for name, w in zip(names, weights, strict=True)]
        print(f"class_weights=balanced: {', '.join(texts)}")
    return weights


def _recorded_class_weights(options: Train) -> list[float] | None:
    """Return the weights in the last checkpoint of a run that is resumed, if it measured any."""
    run = RunFolder(options.resume) if options.resume else None
    if run is None or not run.last.exists() or options_of(run, []).class_weights != "balanced":
        return None
    with suppress(UserError):  # damaged, of which `rewind` says more
        return checkpoint.read_hyper_parameters(run.last)["class_weights"]  # type: ignore[no-any-return]
    return None


def hyper_parameters(
    options: Train, view: View | None = None, class_weights: list[float] | None = None
) -> dict[str, Any]:
    """Return a checkpoint's hyper-parameters: dicts, lists, strings and numbers, which weights_only=True loads."""
    data = options.data.model_dump()
    if view is not None and view.mean is not None and view.std is not None:
        data |= {"mean": [*view.mean], "std": [*view.std]}
    if view is not None and view.bands is not None:
        data |= {"bands": [*view.bands]}
    return {
        "model": segmenter_arguments(options),
        "classes": list(class_names(options.data.model_dump())),
        "data": data,
        "loss": options.loss,
        "class_weights": class_weights,
        "boundary_weight": options.boundary_weight,
        "auxiliary": options.model.auxiliary,
        "deep_supervision": options.model.deep_supervision,
        "seed": options.seed,
        "code": classes.code_of(own_classes(options.model_dump())),
    }


def segmenter_arguments(options: Train) -> dict[str, Any]:
    """Return the arguments of Segmenter.

    They are without the encoder's first weights, as a checkpoint has weights of its own, and without the heads of deep
    supervision, which only training has.
    """
    of_training = {"weights", "strict_weights", "freeze_encoder", "auxiliary", "deep_supervision"}
    return {
        **options.model.model_dump(exclude=of_training),
        "classes": len(class_names(options.data.model_dump())),
        "in_channels": options.data.channels or 3,
        "channels_last": options.channels_last,
    }


def make_steering(options: Train) -> list[Callback]:
    """Return the callbacks that change a training, where they are asked for.

    They are the average of the weights, early stopping, and what lets a frozen encoder train after some epochs.
    """
    callbacks: list[Callback] = []
    if options.optimizer.ema is not None:
        callbacks.append(AverageWeights(decay=options.optimizer.ema))
    if options.early_stopping is not None:
        callbacks.append(EarlyStop(options.early_stopping))
    if not isinstance(options.model.freeze_encoder, bool):
        callbacks.append(Thaw(options.model.freeze_encoder))
    return callbacks


def make_own_callbacks(options: Train) -> list[Callback]:
    """Return the callbacks of the user's own."""
    return [classes.build(name, "callbacks", Callback) for name in options.callbacks]


def make_loggers(options: Train, run: RunFolder) -> list[Logger]:
    """Return metrics.csv's logger, and the one that is asked for."""
    loggers: list[Logger] = [LongCsv(run.metrics)]
    match options.logger:
        case "wandb":
            loggers.append(wandb_logger(options, run))
        case "tensorboard":
            loggers.append(tensorboard_logger(run, flat_config(options)))
        case "mlflow":
            loggers.append(mlflow_logger(run, flat_config(options), options.wandb.project))
    return loggers


def make_watchers(options: Train, run: RunFolder) -> tuple[Guard, list[Callback]]:
    """Return the guard, and all watchers: sample pictures and the gradient flow unless switched off, the guard."""
    watchers: list[Callback] = []
    if options.wandb.images:
        watchers.append(SamplePictures(class_names(options.data.model_dump())))
    gradients, flow = options.gradients, None
    if gradients.every_n_steps:
        routes_every = gradients.routes_every_n_steps if gradients.routes == "exits" else None
        flow = FlowReadings(gradients.every_n_steps, run.gradient_flow, run.figures, routes_every)
        watchers.append(flow)
    guard = Guard(run.left_out, flow)
    return guard, [*watchers, guard]


def trainer_arguments(options: Train) -> dict[str, Any]:
    """Return the Trainer's arguments; a run that is resumed keeps the number format that was chosen at its begin."""
    if not options.resume or options.trainer.get("precision"):
        return options.trainer
    return options.trainer | {"precision": recorded_precision(RunFolder(options.resume).last)}


def make_trainer(arguments: dict[str, Any], loggers: list[Logger], callbacks: list[Callback], root: Path) -> L.Trainer:
    """Return Lightning's Trainer; arguments that are absent get our defaults."""
    defaults: dict[str, Any] = {
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # EpochSampler distributes the examples itself, each exactly once
    }
    silence_lightning()
    # null is a value of check_val_every_n_epoch: then trainer.val_check_interval counts batches across epochs
    values = {n: value for n, value in arguments.items() if value is not None or n == "check_val_every_n_epoch"}
    if "precision" not in values:
        defaults["precision"] = best_precision(values.get("accelerator", "auto"))
    progress = progress_callback(values.get("enable_progress_bar", True))
    values["enable_progress_bar"] = not isinstance(progress, EpochLines)  # else Lightning adds a bar of its own
    plugins: list[Any] = [AtomicIO()]
    if values.get("sync_batchnorm") and is_cpu(values.get("accelerator", "auto")):
        values["sync_batchnorm"] = False
        plugins.append(JointBatchNorm())
    try:
        return L.Trainer(
            **defaults | values,
            logger=loggers,
            callbacks=[*callbacks, progress],
            default_root_dir=str(root),
            plugins=plugins,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        settings = ", ".join(f"trainer.{name}={value}" for name, value in values.items())
        raise UserError(f"Lightning's Trainer refuses {settings}", accepted=str(error), advice="--help") from None


def write_augmented(data: SegmentationData, folder: Path) -> Path:
    """Draw a page of augmented training pictures beside a run folder; return its path, which was free."""
    assert data.collection is not None
    path = free_path(folder.with_name(f"{folder.name}.augmented.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    samples.augmented_sheet(data.augmented_examples(), data.collection.classes, SHEET_PICTURES, path)
    return path


def describe_start(trainer: L.Trainer, module: SegmentationModule, folder: Path) -> str:
    """Return where a run computes, how, and where it writes to, in a line."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else counted(torch.get_num_threads(), "thread")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    held = sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
    frozen = f" ({held / 1e6:.2f} M of them frozen)" if held else ""
    several = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    size = f"{parameters / 1e6:.2f} M parameters{frozen}"
    return f"on {several}{device.type} ({name}), {trainer.precision}, {size}: {folder}"


def silence_lightning() -> None:
    """Silence the messages of Lightning that every run has; its warnings about this run stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message=".*training_step. returned .None.")  # Guard prints more about it
    # after an epoch whose batches were all left out
    warnings.filterwarnings("ignore", message="The ..compute.. method of metric SegmentationScores was called before")
    # EpochSampler continues in the middle of an epoch
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # without validation there is no best checkpoint, as train() prints at its end
    warnings.filterwarnings("ignore", message=".*could not find the monitored key in the returned metrics")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # a frozen encoder is meant to be
    warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode at the start of training")


def set_batch_size_and_learning_rate(
    options: Train, trainer: L.Trainer, data: SegmentationData, module: SegmentationModule
) -> dict[str, Any]:
    """Set the batch of each device and the learning rate by the number of devices; return them for the summary.

    Raises:
        UserError: data.global_batch_size can't be divided evenly among the devices, or leaves shuffled one picture.
    """
    parts = trainer.world_size * trainer.accumulate_grad_batches
    wanted = options.data.global_batch_size
    if wanted is not None and wanted % parts:
        near = max(parts, wanted // parts * parts)
        raise UserError(
            f"data.global_batch_size={wanted} on {trainer.world_size} devices, accumulated "
            f"{trainer.accumulate_grad_batches} times",
            accepted=f"a multiple of {parts}",
            advice=f"data.global_batch_size={near}",
        )
    data.batch_size = options.data.batch_size if wanted is None else wanted // parts
    if data.batch_size == 1 and "shuffled" in options.model.skip:
        raise UserError(
            f"skip=shuffled with data.global_batch_size={wanted}, one picture at a time on each device",
            accepted="two or more, whose features are exchanged",
            advice=f"data.global_batch_size={2 * parts}",
        )
    module.lr = options.optimizer.lr * lr_scale(options, data.batch_size * parts)
    sizes = {
        "devices": trainer.world_size,
        "batch_size": data.batch_size,
        "global_batch_size": data.batch_size * parts,
        "lr": module.lr,
        "encoder_lr": None if options.model.freeze_encoder is True else module.lr * options.encoder_lr_factor,
    }
    if trainer.world_size > 1 and trainer.is_global_zero:
        print(", ".join(f"{name} {value}" for name, value in sizes.items()))
    return sizes


def lr_scale(options: Train, pictures: int) -> float:
    """Return what optimizer.lr is multiplied by for steps of so many pictures."""
    ratio = pictures / options.data.batch_size
    return {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[options.optimizer.lr_scaling]
