"""The typed schema of every option of a training and of a sweep.

model_schema.py has those of the network, data_schema.py of the data, command_schema.py of the other commands.

Imports neither torch nor Lightning: a wrong option fails within a second. Defaults live in conf/ only; a field's
description is what `--help` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from unetseg.names import (
    LOSSES,
    OWN_CLASS,
    class_names,
)
from unetseg.options.data_schema import Folder, HuggingFace, OwnSource, Pets, Synthetic
from unetseg.options.loss import check_loss_for_classes, checked_boundary_weight, checked_class_weights, checked_loss
from unetseg.options.messages import format_value, one_of_own, rejected
from unetseg.options.model_schema import Model, ModelOfSweep
from unetseg.options.section import Section, Text, Trust
from unetseg.options.trainer import check_trainer

TRAINED_ENCODER_LR_FACTOR = 0.2
"""What an encoder with trained weights learns by: they need less change than a decoder with random ones
(docs/contest.md)."""


class Optimizer(Section):
    """The optimizer, and the schedule of its learning rate."""

    name: Text = Field(description="adamw | adam | sgd (Nesterov's momentum, 0.9) | a name of timm.optim, such as lion")
    lr: float = Field(gt=0, description="learning rate at the start, for steps of data.batch_size pictures")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        description="what lr is multiplied by where steps are k times as large: none 1 | linear k | sqrt k^0.5"
    )
    encoder_lr_factor: float | None = Field(
        gt=0,
        description="what lr is multiplied by for the encoder; null: 0.2 where it begins with trained weights "
        "(model.weights), else 1",
    )
    weight_decay: float = Field(ge=0, description="weight decay: decoupled in adamw, part of the gradient in adam, sgd")
    arguments: dict[str, Any] | None = Field(
        description="further arguments of the optimizer's class, such as {momentum:0.95}; or null"
    )
    schedule: Literal["cosine", "poly", "one_cycle", "constant", "plateau"] = Field(
        description="of lr over all steps: cosine (to 0) | poly (to 0, power 0.9) | one_cycle (up from lr/25, then "
        "to 0) | constant | plateau (a tenth of it after `patience` validations without a better val/iou)"
    )
    warmup_epochs: float = Field(ge=0, description="epochs in which lr rises to its full value; one_cycle's 0 is 30 %")
    patience: int = Field(ge=0, description="validations that plateau waits for a better val/iou")
    ema: float | None = Field(
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is scored and saved, such as 0.99; null",
    )

    @field_validator("arguments")
    @classmethod
    def _arguments(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        own = {"lr", "weight_decay", "params"} & set(value or {})
        if own:
            raise rejected("arguments without lr and weight_decay, which are options of their own", "optimizer.lr=...")
        return value


class Gradients(Section):
    """The gradient flow."""

    every_n_steps: int = Field(ge=0, description="steps between two readings of the gradient flow; 0: none at all")
    routes: Literal["exits", "none"] = Field(
        description="exits: read as well by which exit of the encoder, a level's long skip or the bottleneck, the "
        "gradient of its weights came, and by which of its short or dense skips that of its features | none"
    )
    routes_every_n_steps: int = Field(ge=1, description="steps between two readings of the routes, which cost more")


class Checkpoint(Section):
    """Which checkpoint is the run's model, and when last.ckpt is written besides the end of each epoch."""

    choose: Literal["last", "best"] | None = Field(
        description="which is tested at the end, and taken where the run folder is given: last (the weights of the "
        "last step) | best (those of the best val/iou); null: last where lr has fallen to 0 by then, else best"
    )

    every_n_minutes: float | None = Field(gt=0, description="minutes between two writes of last.ckpt; null: never")
    every_n_steps: int | None = Field(ge=1, description="steps between two writes of last.ckpt; null: never")


class Guards(Section):
    """What is done when something goes wrong."""

    nonfinite_loss: Literal["stop", "skip"] = Field(
        description="a batch whose loss is NaN or inf: stop | skip (no step is taken; it is named and counted)"
    )
    unreadable_image: Literal["stop", "skip"] = Field(description="a file that can't be read: stop | skip (left out)")


class Wandb(Section):
    """Weights & Biases, read when logger=wandb."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        description="auto (online only with a key) | online | offline | disabled"
    )
    project: Text = Field(min_length=1, description="W&B project; with logger=mlflow the experiment")
    entity: Text | None = Field(description="W&B user or team; null: the key's own")
    images: bool = Field(
        description="false: no pictures of the validation, only numbers and figures of them; for each logger"
    )
    log_model: bool = Field(description="true: upload the model that was tested as an artifact, when online")


class Train(Section):
    """The options of python -m unetseg.train."""

    model: Model
    data: Annotated[Pets | Folder | HuggingFace | Synthetic | OwnSource, Field(discriminator="name")]
    loss: str | dict[str, float | dict[str, float]] = Field(
        description=f"{' | '.join(LOSSES)}, or a sum: a table of names and weights, in quotes: "
        "'loss={dice:1,focal:0.5}', also with parameters: 'loss={tversky:{alpha:0.3,beta:0.7}}'; or one of your own, "
        "package.module:Class"
    )
    class_weights: Literal["balanced"] | list[float] | None = Field(
        description="null | balanced (the fewer pixels a class has in the training masks, the more they count) | a "
        "number for each class: what its pixels count in the losses of pixels, and with three classes and more what it "
        "counts in dice, jaccard, tversky and mcc"
    )
    boundary_weight: float | None = Field(
        description="null | what pixels between two objects that touch count more in the losses of pixels: 10 in "
        "Ronneberger et al. 2015"
    )
    optimizer: Optimizer
    early_stopping: int | None = Field(
        ge=1, description="validations without a better val/iou after which a training ends; null: it runs to its end"
    )
    callbacks: list[str] = Field(
        description="Lightning callbacks of your own: [package.module:Class], or with arguments "
        "[{class: package.module:Class, ARGUMENT: VALUE}]"
    )
    find_lr: bool = Field(
        description="true: try learning rates over 100 steps, draw the loss over them, suggest one and train nothing"
    )
    trainer: dict[str, Any] = Field(description="arguments of Lightning's Trainer, unchanged")
    logger: Literal["wandb", "tensorboard", "mlflow", "csv", "none"] = Field(
        description="wandb | tensorboard | mlflow | csv | none; metrics.csv is written whatever is chosen"
    )
    wandb: Wandb
    gradients: Gradients
    checkpoint: Checkpoint
    guards: Guards
    channels_last: bool = Field(description="memory layout with channels innermost: faster on CPUs and GPUs")
    compile: bool = Field(description="torch.compile: the first step takes a minute or more; needs a C++ compiler")
    seed: int = Field(ge=0, lt=2**32, description="seed of weights, order and augmentation")
    name: Text | None = Field(description="name of the run folder; null: made of the options and the time")
    output: Text = Field(description="folder that holds the run folders")
    resume: Text | None = Field(description="run folder of a training that was stopped: go on from its last.ckpt")
    trust: Trust
    allow_changes: list[Text] = Field(description="options that may differ from those the resumed run began with")
    dry_run: bool = Field(
        description="true: look at the data as a training would, build the model, say what would be trained, and stop: "
        "nothing is trained and no run folder made"
    )
    sweep: dict[str, Text] = Field(description="an experiment's axes in Hydra's comma syntax: --multirun, ablate")

    @field_validator("loss", mode="before")
    @classmethod
    def _loss(cls, value: object) -> str | dict[str, float | dict[str, float]]:
        return checked_loss(value)

    @field_validator("callbacks", mode="before")
    @classmethod
    def _callbacks(cls, value: object) -> list[str]:
        accepted, advice = f"a list of Lightning callbacks: {OWN_CLASS}", "[my_callbacks:MyCallback]"
        if not isinstance(value, list | tuple):
            raise rejected(accepted, advice)
        return [one_of_own(entry, accepted, advice) for entry in value]

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights(cls, value: object) -> str | list[float] | None:
        return checked_class_weights(value)

    @field_validator("boundary_weight", mode="before")
    @classmethod
    def _boundary_weight(cls, value: object) -> float | None:
        return checked_boundary_weight(value)

    @field_validator("trainer")
    @classmethod
    def _trainer(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_trainer(value)
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and (not value or "/" in value or value in (".", "..")):
            raise rejected("a plain folder name without '/'; the folder above it is `output`", "null")
        return value

    @field_validator("resume")
    @classmethod
    def _resume(cls, value: str | None) -> str | None:
        if value is not None and not (Path(value) / "config.yaml").is_file():
            raise rejected("the run folder of a training that was stopped: it holds a config.yaml", "null")
        return value

    @property
    def encoder_lr_factor(self) -> float:
        """Return what the learning rate is multiplied by for the encoder."""
        given = self.optimizer.encoder_lr_factor
        return given if given is not None else 1.0 if self.model.weights is None else TRAINED_ENCODER_LR_FACTOR

    @property
    def is_endless(self) -> bool:
        """Whether no number of epochs or steps ends the training."""
        return self.trainer.get("max_epochs") == -1 and (self.trainer.get("max_steps") or -1) == -1

    def chooses_last(self, *, ended_early: bool) -> bool:
        """Return whether the weights of the last step are the run's model, and not those of the best val/iou.

        Args:
            ended_early: whether something ended the training before its last epoch or step.
        """
        if self.checkpoint.choose is not None:
            return self.checkpoint.choose == "last"
        falls_to_0 = self.optimizer.schedule in ("cosine", "poly", "one_cycle") and not self.is_endless
        return falls_to_0 and not ended_early

    @model_validator(mode="after")
    def _probes_read_whole_weights(self) -> Train:
        if str(self.trainer.get("strategy")).startswith(("fsdp", "deepspeed")) and self.gradients.every_n_steps:
            raise rejected(
                "trainer.strategy=ddp; with others, which share the weights out, no gradient probes",
                "gradients.every_n_steps=0",
            )
        return self

    @model_validator(mode="after")
    def _shuffled_pictures_are_several(self) -> Train:
        kinds = self.model.skip if isinstance(self.model.skip, list) else [self.model.skip]
        if "shuffled" in kinds and self.data.batch_size == 1 and self.data.global_batch_size is None:
            raise rejected("data.batch_size=2 or more with skip=shuffled, to exchange features", "data.batch_size=8")
        if "shuffled" in kinds and self.data.crop is not None and self.data.crops != 1:
            raise rejected(
                "data.crops=1 with skip=shuffled and data.crop: several crops of a picture in a batch would exchange "
                "features of that picture",
                "data.crops=1",
            )
        return self

    @model_validator(mode="after")
    def _thawed_weights_are_whole(self) -> Train:
        sharded = str(self.trainer.get("strategy")).startswith(("fsdp", "deepspeed"))
        if sharded and not isinstance(self.model.freeze_encoder, bool):
            raise rejected("trainer.strategy=ddp with model.freeze_encoder=EPOCHS", "model.freeze_encoder=true")
        if sharded and self.optimizer.ema is not None:
            raise rejected("trainer.strategy=ddp with optimizer.ema", "optimizer.ema=null")
        return self

    @model_validator(mode="after")
    def _schedule_fits_length(self) -> Train:
        optimizer, epochs = self.optimizer, self.trainer.get("max_epochs") or 0
        if optimizer.schedule == "plateau" and optimizer.warmup_epochs:
            raise rejected("optimizer.warmup_epochs=0 with schedule=plateau", "optimizer.warmup_epochs=0")
        if 0 < epochs <= optimizer.warmup_epochs:  # where max_steps decides, lengths.check_lengths knows
            raise rejected(
                f"optimizer.warmup_epochs below trainer.max_epochs, {epochs}",
                f"optimizer.warmup_epochs={epochs / 10:g}",
            )
        frozen = self.model.freeze_encoder
        is_held = frozen is True or (not isinstance(frozen, bool) and 0 < epochs <= frozen)
        if is_held and optimizer.encoder_lr_factor not in (None, 1):
            raise rejected(
                f"optimizer.encoder_lr_factor=1 with model.freeze_encoder={format_value(frozen)}: an encoder that "
                "stays as it is has no learning rate",
                "optimizer.encoder_lr_factor=1, or fewer epochs for model.freeze_encoder",
            )
        if self.is_endless and optimizer.schedule in ("poly", "one_cycle"):
            raise rejected(
                f"an end with schedule={optimizer.schedule}: trainer.max_epochs or trainer.max_steps",
                "trainer.max_epochs=20, or optimizer.schedule=constant",
            )
        waiting = optimizer.schedule == "plateau" or self.early_stopping is not None
        if waiting and self.trainer.get("limit_val_batches") == 0:
            raise rejected(
                "validations, for which early_stopping and schedule=plateau wait", "trainer.limit_val_batches=1.0"
            )
        epochs, apart = self.trainer.get("max_epochs"), self.trainer.get("check_val_every_n_epoch")
        if waiting and apart is not None and epochs is not None and 0 < epochs < apart:
            raise rejected(
                f"validations, for which early_stopping and schedule=plateau wait: none comes in {epochs} epochs",
                "trainer.check_val_every_n_epoch=1",
            )
        return self

    @model_validator(mode="after")
    def _rates_are_tried_from_the_start(self) -> Train:
        if self.find_lr and self.resume:
            raise rejected("find_lr=true without resume: rates are tried from a training's first step", "resume=null")
        return self

    @model_validator(mode="after")
    def _loss_fits_classes(self) -> Train:
        classes = class_names(self.data.model_dump())
        check_loss_for_classes(self.loss, classes, self.class_weights, self.boundary_weight)
        return self


class Ablate(Train):
    """The options of python -m unetseg.ablate."""

    model: ModelOfSweep
    jobs: int = Field(ge=1, description="runs at once; the visible GPUs are shared out among them")
    search: Literal["optuna"] | None = Field(
        description="null: each combination is run | optuna: options given as choices, range(...), interval(...) or "
        "tag(log,interval(...)) are searched for the best val/iou"
    )
    trials: int | None = Field(ge=1, description="trials of a search; null without one")

    @model_validator(mode="after")
    def _trials_are_a_searchs(self) -> Ablate:
        if (self.search is None) != (self.trials is None):
            raise rejected("search=optuna with trials=N, or neither", "search=optuna trials=50")
        return self

    @model_validator(mode="after")
    def _trains(self) -> Ablate:
        for option in ("dry_run", "find_lr"):
            if getattr(self, option):
                raise rejected(
                    f"{option}=false; for each of a sweep's runs it is one of train",
                    f"python -m unetseg.train --multirun, the same options and {option}=true",
                )
        return self
