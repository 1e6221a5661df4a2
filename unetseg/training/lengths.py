"""How long a training is in steps, and what its pictures and options must be for that."""

from __future__ import annotations

import lightning as L

from unetseg.data.datamodule import SegmentationData
from unetseg.errors import UserError
from unetseg.names import counted
from unetseg.options.schema import Train


def describe(trainer: L.Trainer, data: SegmentationData) -> str:
    """Return how many pictures each split has, and how many steps a training takes, in a line."""
    assert data.collection is not None
    pictures = ", ".join(f"{len(examples)} for {split}" for split, examples in data.collection.splits.items())
    steps, total = steps_of(trainer, data)
    length = "without an end" if total is None else f"{counted(total, 'step')} in all"
    return f"pictures: {pictures}; {counted(steps, 'step')} an epoch (batches of {data.batch_size}), {length}"


def steps_of(trainer: L.Trainer, data: SegmentationData) -> tuple[int, int | None]:
    """Return the steps of an epoch, and of the whole training; None where that has no end."""
    batches, limit = data.batches_per_epoch(trainer.world_size), trainer.limit_train_batches
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    steps = -(-batches // trainer.accumulate_grad_batches)
    limits = [limit for limit in (steps * (trainer.max_epochs or 0), trainer.max_steps) if limit > 0]
    return steps, min(limits, default=None)


def check_limits(trainer: L.Trainer, data: SegmentationData) -> None:
    """Raise a UserError where a share of the batches is less than one, or validations are further apart than epochs."""
    for split in ("train", "val", "test"):
        share = getattr(trainer, f"limit_{split}_batches")
        batches = data.batches_of(split, trainer.world_size)
        if share and data.examples_of(split) < trainer.world_size:
            raise UserError(
                f"the {split} split has {counted(data.examples_of(split), 'picture')} for {trainer.world_size} devices",
                accepted="at least one for each",
                advice=f"trainer.devices=1, or trainer.limit_{split}_batches=0",
            )
        if isinstance(share, float) and share * batches < 1 and (share or split != "val"):
            raise UserError(
                f"trainer.limit_{split}_batches={share} of {batches} batches is none",
                accepted=f"at least {1 / batches:.2g}, or a whole number of batches",
                advice=f"trainer.limit_{split}_batches=1",
            )
        steps = trainer.val_check_interval
        limit = batches if isinstance(share, float) else min(share, batches)
        within_epoch = isinstance(steps, int) and trainer.check_val_every_n_epoch is not None
        if split == "train" and within_epoch and steps > limit and trainer.limit_val_batches:
            raise UserError(
                f"trainer.val_check_interval={steps} is more than the {limit} batches of an epoch",
                accepted="a part of an epoch; with trainer.check_val_every_n_epoch=null any number of batches",
                advice=f"trainer.val_check_interval={limit}",
            )


def check_partners(options: Train, trainer: L.Trainer, data: SegmentationData) -> None:
    """Raise a UserError where skip=shuffled finds no second training picture on some device."""
    if "shuffled" in options.model.skip and data.examples_of("train") < 2 * trainer.world_size:
        raise UserError(
            f"skip=shuffled with {counted(data.examples_of('train'), 'training picture')} "
            f"on {counted(trainer.world_size, 'device')}",
            accepted="two or more for each device, whose features are exchanged",
            advice="more training pictures, or model.skip=placebo",
        )


def check_lengths(options: Train, trainer: L.Trainer, data: SegmentationData) -> None:
    """Raise a UserError where a training ends before what its first epochs are for: so many epochs are so many steps.

    What trainer.max_epochs alone tells has been refused with the options; trainer.max_steps needs the data's size.
    """
    steps, total = steps_of(trainer, data)
    warmup = options.optimizer.warmup_epochs
    if warmup and not round(warmup * steps):
        raise UserError(
            f"optimizer.warmup_epochs={warmup:g} of {counted(steps, 'step')} is none",
            accepted=f"0, or at least {1 / steps:.2g}, which is a step",
            advice="optimizer.warmup_epochs=1",
        )
    if total is not None and warmup and total <= round(warmup * steps):
        raise UserError(
            f"optimizer.warmup_epochs={warmup:g} are {counted(round(warmup * steps), 'step')}, and the training has "
            f"{total}: lr would never reach its full value",
            accepted=f"less than {total / steps:.3g} epochs, or a longer training",
            advice=f"optimizer.warmup_epochs={total / steps / 10:.2g}",
        )
    frozen = options.model.freeze_encoder
    is_held = not isinstance(frozen, bool) and total is not None and total <= frozen * steps
    if is_held and options.optimizer.encoder_lr_factor not in (None, 1):
        raise UserError(
            f"optimizer.encoder_lr_factor={options.optimizer.encoder_lr_factor:g} does nothing: "
            f"model.freeze_encoder={frozen} are {counted(frozen * steps, 'step')}, and the training has {total}",
            accepted="optimizer.encoder_lr_factor=1, or an encoder that is let go",
            advice="optimizer.encoder_lr_factor=1",
        )
