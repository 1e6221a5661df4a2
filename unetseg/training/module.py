"""The LightningModule: it trains and evaluates a model by a loss, with metrics and an optimizer."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torchmetrics import MeanMetric

from unetseg.data.dataset import Batch
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.evaluation.calibration import confidence_counts
from unetseg.evaluation.metrics import SegmentationScores, image_counts
from unetseg.evaluation.whole import answer
from unetseg.model.auxiliary import AuxiliaryHeads, MaskHeads
from unetseg.model.segmenter import class_map
from unetseg.training.optimization import Optimization, can_fuse

STAGES = ("train", "val", "test")


class SegmentationModule(L.LightningModule):
    """Trains and evaluates a Segmenter.

    Args:
        model: maps Bx3xHxW uint8 to logits BxKxHxW.
        loss: maps float32 logits and BxHxW classes to a scalar.
        classes: number of classes.
        lr: the full learning rate.
        optimization: the optimizer, and the course of the learning rate; None: AdamW without decay, and a cosine to 0
            over all steps.
        hyper_parameters: plain values that are kept in the checkpoint.
        view: how the model sees pictures; with crops, evaluations are of whole pictures in tiles.
        skip_nonfinite: take no step on a batch whose loss is NaN or inf, and undo its changes of the buffers.
        auxiliary: heads on the encoder's features, whose loss is added while training. It is the mean over the heads,
            so that together they weigh as much as the model's own output; the heads weigh equally, as in U-Net++'s deep
            supervision (Zhou et al. 2018).
        deep_supervision: heads on the decoder's features, likewise.

    Examples:
        >>> from unetseg.model import Segmenter
        >>> from unetseg.training.losses import make_loss
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None)
        >>> module = SegmentationModule(model, make_loss("dice", classes=2), classes=2, lr=1e-3)
        >>> # L.Trainer(max_epochs=10).fit(module, SegmentationData(...))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        classes: int,
        lr: float = 0.0,
        optimization: Optimization | None = None,
        hyper_parameters: dict[str, Any] | None = None,
        view: View | None = None,
        skip_nonfinite: bool = False,
        auxiliary: AuxiliaryHeads | None = None,
        deep_supervision: MaskHeads | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(hyper_parameters or {}, logger=False)
        self.model, self.loss, self.classes = model, loss, classes
        self.auxiliary, self.deep_supervision = auxiliary, deep_supervision
        self.lr, self.optimization, self.skip_nonfinite = lr, optimization or Optimization(), skip_nonfinite
        self.view = view or View()
        self.steps: float = 0
        self.warmup = 0
        # ModuleDict refuses the key "train"
        self.scores = nn.ModuleDict({f"{stage}_scores": SegmentationScores(classes) for stage in STAGES})
        # the mean over images; Lightning's own rounds their number per process down, and "disable" forgets it
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric(nan_strategy=math.nan) for stage in STAGES[1:]})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, and count its pixels; None if the batch is left out."""
        before = [buffer.clone() for buffer in self.model.buffers()] if self.skip_nonfinite else []
        if self.auxiliary is None and self.deep_supervision is None:
            loss, counts = self._step(batch, self.model(batch.images))
        else:
            logits, features, nodes = self.model(batch.images, with_features=True)
            loss, counts = self._step(batch, logits)
            for name, heads, own in (
                ("auxiliary", self.auxiliary, features),
                ("deep_supervision", self.deep_supervision, nodes),
            ):
                if heads is not None:
                    by_head = [self.loss(of_head, batch.masks) for of_head in heads(own, batch.masks.shape[-2:])]
                    mean = torch.stack(by_head).mean()
                    self.log(f"train/{name}_loss", mean)
                    loss = loss + mean
        self.log("train/loss", loss, prog_bar=True)
        if self.skip_nonfinite and not loss.isfinite():  # the same on all processes: the loss is of their whole batch
            with torch.no_grad():
                for buffer, value in zip(self.model.buffers(), before, strict=True):
                    buffer.copy_(value)
            return None
        self._metric("train").update(counts)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the predicted class maps, BxHxW uint8, and the counts, BxCx6."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return what `validation_step` does, and the counts by confidence, BINSx3."""
        return self._evaluation_step(batch, "test")

    def on_train_start(self) -> None:
        """Apply the options to a resumed run, whose optimizer and schedule come from its checkpoint."""
        if not self.trainer.global_step:
            return
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        step = self._step_by_these_options()
        lrs = base_lrs = [self.lr * factor for factor in self.optimization.lr_factors]
        before = [group["initial_lr"] for group in optimizer.param_groups]
        current = [group["lr"] for group in optimizer.param_groups]
        is_cosine = isinstance(schedule, CosineAnnealingLR)
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.patience = self.optimization.patience
        if isinstance(schedule, ReduceLROnPlateau) and math.isfinite(schedule.best):
            ratios = [new / old for new, old in zip(base_lrs, before, strict=True)]
            lrs = [lr * ratio for lr, ratio in zip(current, ratios, strict=True)]
        elif is_cosine and (schedule.T_max, schedule.last_epoch, before) == (self.steps, step, base_lrs):
            lrs = current  # to the last bit, as torch's cosine rounds in each step
        elif schedule is not None and not isinstance(schedule, ReduceLROnPlateau):
            lrs = [lr * self.optimization.factor(step, self.steps, self.warmup) for lr in base_lrs]
            schedule.last_epoch, schedule.base_lrs = step, base_lrs
            if is_cosine:
                schedule.T_max = self.steps
        for group, lr, base_lr in zip(optimizer.param_groups, lrs, base_lrs, strict=True):
            group |= {"lr": lr, "initial_lr": base_lr, "weight_decay": self.optimization.weight_decay}

    def _step_by_these_options(self) -> int:
        """Return the number of steps after which a run of these options would be at this point of the data."""
        trainer: Any = self.trainer
        if trainer.max_steps == self.steps:
            return int(trainer.global_step)
        epoch, examples = trainer.datamodule.done
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        in_epoch = examples // (trainer.datamodule.batch_size * trainer.world_size) // accumulated
        return int(epoch * -(-batches // accumulated) + in_epoch)

    def on_train_epoch_start(self) -> None:
        """Reset the scores of the training batches."""
        self._metric("train").reset()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation split, and those of the epoch's training batches.

        The weights were changing while the latter were counted. Both are written before the checkpoint, so that a run
        that is resumed from it has every row.
        """
        if not self.trainer.sanity_checking:
            scores = self._metric("train").compute()
            train_scores = {f"train/{name}": scores[name].float() for name in ("iou", "boundary_iou")}
            self.log_dict(train_scores, sync_dist=True)
        iou = self._log_scores("val")
        schedule: Any = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            schedule.step(iou)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule of steps; plateau has its own time, after each validation."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test split."""
        self._log_scores("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the precision, and the scores of the epoch's training batches so far, over all processes."""
        checkpoint["precision"] = str(self.trainer.precision)
        metric = self._metric("train")
        with metric.sync_context():
            checkpoint["train_scores"] = copy.deepcopy(metric.metric_state)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the weights; raise a UserError where they are another model's."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise UserError(
                f"the weights don't fit this model: {error}", advice="the options of the checkpoint"
            ) from None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prepare a checkpoint for a run with other options, and restore the scores of the epoch's training batches.

        A schedule of another kind begins at the step that the run is at. Where an average of the weights is kept no
        longer, training goes on with the weights themselves. The scores are restored on the first process.
        """
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            schedules = checkpoint["lr_schedulers"]
            checkpoint["lr_schedulers"] = [state for state in schedules if self.optimization.has_made(state)]
            averages = any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
            if not averages:
                checkpoint["state_dict"] = checkpoint.get("current_model_state", checkpoint["state_dict"])
        if self._trainer is not None and self.trainer.is_global_zero and "train_scores" in checkpoint:
            for name, value in checkpoint["train_scores"].items():
                setattr(self._metric("train"), name, value.to(self.device))

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule of its rate over all steps of the run."""
        fused = can_fuse(self.device, self.trainer.precision, clips=bool(self.trainer.gradient_clip_val))
        optimizer = self.optimization.make_optimizer(self, self.lr, fused=fused)
        self.steps = max(1, self.trainer.estimated_stepping_batches)
        if self.optimization.warmup_epochs:
            self.trainer.fit_loop.setup_data()  # counts the batches, which a training without an end hasn't done yet
            steps_per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
            self.warmup = round(self.optimization.warmup_epochs * steps_per_epoch)
        schedule = self.optimization.make_schedule(optimizer, self.steps, self.warmup)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # which not all schedules note
        if schedule is None:
            return optimizer
        # plateau steps after each validation, before the checkpoint; Lightning would step it after, and a run that is
        # resumed there would miss the step
        plateau = {"interval": "epoch", "monitor": "val/iou", "reduce_on_plateau": False}
        when = plateau if isinstance(schedule, ReduceLROnPlateau) else {"interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **when}}

    def _evaluation_step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        size = (batch.masks.shape[1], batch.masks.shape[2])
        tiles_at_once = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        logits, predicted = answer(self.model, batch.images, self.view, size, tiles_at_once)
        counts = image_counts(predicted, batch.masks, self.classes)
        loss = self.loss(logits, batch.masks)
        self._metric(stage).update(counts)
        mean = cast(MeanMetric, self.losses[f"{stage}_loss"])
        mean.update(loss, len(batch.indices))
        self.log(f"{stage}/loss", mean)
        confidences = {"confidences": confidence_counts(logits, batch.masks)} if stage == "test" else {}
        return {"predicted": predicted, "counts": counts, **confidences}

    def _step(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        counts = image_counts(class_map(logits.detach()), batch.masks, self.classes)
        return self.loss(logits, batch.masks), counts

    def _metric(self, stage: str) -> SegmentationScores:
        return cast(SegmentationScores, self.scores[f"{stage}_scores"])

    def _log_scores(self, stage: str) -> float:
        """Log the scores of a stage; return its IoU."""
        metric = self._metric(stage)
        scores = {name: value.float() for name, value in metric.compute().items()}
        metric.reset()
        # the counts are sums over processes already; sync_dist averages equal values, and avoids Lightning's warning
        self.log_dict({f"{stage}/{name}": v for name, v in scores.items() if name != "iou"}, sync_dist=True)
        self.log(f"{stage}/iou", scores["iou"], prog_bar=True, sync_dist=True)
        return float(scores["iou"])
