"""Cheap checks before anything heavy is imported: downloads and the network, packages, keys, a resumed run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from unetseg import classes
from unetseg.errors import UserError
from unetseg.huggingface import HUB, Source, answers, hub_cache, hub_is_offline
from unetseg.names import PETS_ROOT, TIMM, class_names
from unetseg.options import settings
from unetseg.options.data_schema import HuggingFace, Pets
from unetseg.options.schema import Train
from unetseg.options.starting_weights import ACCEPTED, may_be_there
from unetseg.runs.folder import check_resume, has_weights

if TYPE_CHECKING:
    from unetseg.data.datamodule import SegmentationData

LIBRARIES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""What loggers need that is not always installed; MLflow keeps its runs in SQLite by the last two."""
PETS_HOST = "https://www.robots.ox.ac.uk"


def train(options: Train) -> None:
    """Raise a UserError if the run can't be resumed, or lacks its first weights, a network, a key or a package."""
    if options.resume:
        check_resume(options)
    if not has_weights(options):
        start(options)
    surroundings(options)


def start(options: Train) -> None:
    """Raise a UserError if what a run's first weights come from is not there, and can't be downloaded."""
    weights = options.model.weights
    if weights is not None and not may_be_there(weights):
        raise UserError(f"model.weights={weights} is not accepted", accepted=ACCEPTED, advice="model.weights=null")
    if weights == "imagenet" and not _cached(options.model.encoder):
        endpoint = os.environ.get("HF_ENDPOINT", HUB)
        offline = hub_is_offline()
        if offline or not answers(endpoint):
            raise no_weights(options.model.encoder, "HF_HUB_OFFLINE is set" if offline else "no network")


def surroundings(options: Train) -> None:
    """Raise a UserError if a run, new or not, lacks a class of the user's own, a network, a key or a package."""
    own_classes(options)
    compiler = os.environ.get("CXX", "g++")
    if options.compile and shutil.which(compiler) is None:
        raise UserError(
            f"compile=true: torch.compile needs a C++ compiler, and {compiler} is not on the PATH",
            accepted="g++, or the one that CXX in the environment names",
            advice="compile=false",
        )
    augment = options.data.augment
    if isinstance(augment, list):
        from unetseg.data import augmentation  # and, for a list, albumentations, which imports torch
        from unetseg.data.view import View

        classes = len(class_names(options.data.model_dump()))
        augmentation.check(augment, View.of(options.data.model_dump()), classes)
    if options.data.cache == "device" and augment not in (False, "none") and find_spec("kornia") is None:
        raise UserError(
            "data.cache=device augments with kornia, which is not installed",
            advice="pip install 'unetseg[device]', or data.cache=ram",
        )
    for package in LIBRARIES.get(options.logger, ()):
        if find_spec(package) is None:
            raise UserError(
                f"logger={options.logger} needs the library {package}, which is not installed",
                accepted="wandb, csv, none, or a logger whose library is installed",
                advice=f"pip install 'unetseg[{options.logger}]', or logger=csv",
            )
    if options.logger == "wandb" and options.wandb.mode == "online":
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                "wandb.mode=online needs a key",
                accepted="WANDB_API_KEY in the environment, or `wandb login` once",
                advice="wandb.mode=offline",
            )
    if isinstance(options.data, HuggingFace):
        Source.of(options.data.model_dump()).check()
    needs_pets = isinstance(options.data, Pets) and options.data.root is None and not pets_are_here()
    if needs_pets and not answers(PETS_HOST):
        from unetseg.data.pets import ADVICE  # which imports torch

        raise UserError(f"Oxford-IIIT Pet is not at {PETS_ROOT} and can't be downloaded: no network", advice=ADVICE)


def own_classes(options: Train) -> None:
    """Import the classes of the user's own that options name; a resumed run's are those of a file.

    Raises:
        UserError: they aren't trusted, can't be imported, or are not what the option asks for.
    """
    own = settings.own_classes(options.model_dump())
    classes.admit(own, f"{options.resume}/config.yaml", options.trust or not options.resume)
    if own:
        # which import torch
        from lightning.pytorch.callbacks import Callback

        from unetseg.model.own import check_decoder, check_fusion
        from unetseg.training.own_loss import check_loss

        checks: dict[str, Callable[[str], object]] = {
            "model.skip": check_fusion,
            "model.decoder": check_decoder,
            "loss": check_loss,
            "callbacks": lambda name: classes.load(name, "callbacks", Callback),
            "data.source": lambda name: classes.load(name, "data.source"),
        }
        for name, option in own.items():
            checks[option](name)


def data(data: SegmentationData) -> None:
    """Find and check the data; raise a UserError where it can't be trained on, or the tables can't hold its names."""
    data.check()
    assert data.collection is not None
    names = (example.name for examples in data.collection.splits.values() for example in examples)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the name of a picture isn't UTF-8: {name!r}",
                accepted="names that the tables of scores can hold",
                advice="convmv -f latin1 -t utf8 --notest -r FOLDER",
            ) from None


def in_this_process(options: Train) -> None:
    """Check a run that is called from Python, as `train` and for several processes."""
    train(options)
    one_device(options, "called from Python: each further process would run this program from its first line")


SWEEP = "in a multirun: each further process would run all of the sweep again, and train on a part of the data"


def one_device(options: Train, where: str = SWEEP) -> None:
    """Raise a UserError if a run asks for several processes where there may be one only; `where` says why."""
    devices, nodes = options.trainer.get("devices"), options.trainer.get("num_nodes")
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)  # "auto" means all devices
    strategy = str(options.trainer.get("strategy") or "auto")
    if not one or nodes not in (None, 1) or strategy.startswith(("ddp", "fsdp", "deepspeed")):
        raise UserError(
            f"trainer.devices={devices}, trainer.strategy={strategy} {where}",
            accepted="one device and no strategy",
            advice="the same options with python -m unetseg.ablate, which gives each run processes of its own",
        )


def no_weights(encoder: str, reason: str) -> UserError:
    """Return the error for ImageNet weights that can't be fetched."""
    return UserError(
        f"model.weights=imagenet: {encoder}'s weights are not cached and can't be downloaded ({reason})",
        advice=(
            "model.weights=PATH of a .pth or .safetensors state dict of the encoder",
            "model.weights=null, which starts from random weights",
        ),
    )


def _cached(encoder: str) -> bool:
    """Return whether smp's or timm's weights of the encoder lie in the hub's cache."""
    of_timm = f"timm--{encoder.removeprefix(TIMM)}*"  # and its training, which timm may choose
    folder = of_timm if encoder.startswith(TIMM) else f"smp-hub--{encoder}.imagenet"
    return any(hub_cache().glob(f"models--{folder}/snapshots/*/model.safetensors"))


def pets_are_here() -> bool:
    """Return whether Oxford-IIIT Pet lies where it is downloaded to."""
    return (PETS_ROOT / "images").is_dir() and (PETS_ROOT / "annotations").is_dir()
