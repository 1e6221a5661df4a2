"""The arguments of Lightning's Trainer that a run takes, and what some of them may be; Lightning checks the others."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from unetseg.names import PRECISIONS, nearest_first
from unetseg.options.messages import KINDS, rejected

LIMITED = "trainer.max_epochs=1 trainer.limit_train_batches=1 trainer.limit_val_batches=1 trainer.limit_test_batches=1"
OURS = {
    "logger": ("metrics.csv is always written; `logger` adds Weights & Biases", "logger=csv"),
    "callbacks": ("they are an option of their own", "callbacks=[my_callbacks:MyCallback]"),
    "default_root_dir": ("a run writes into output/name", "output=FOLDER"),
    "enable_checkpointing": ("a run always keeps best.ckpt and last.ckpt", "checkpoint.every_n_minutes=null"),
    "plugins": ("unetseg brings its own", ""),
    "inference_mode": ("validation and test always run in it", ""),
    "fast_dev_run": ("it leaves neither checkpoint nor scores; a run of one batch of each does", LIMITED),
    "barebones": ("it leaves neither checkpoint nor scores", "trainer.enable_progress_bar=false"),
    "overfit_batches": (
        "it takes the training pictures for the validation; the same few pictures in each epoch are a folder of them",
        "data=folder data.root=FOLDER data.augment=false",
    ),
    "limit_predict_batches": ("a run trains and tests, and predicts nothing", "python -m unetseg.predict --help"),
    "use_distributed_sampler": ("the examples are always shared out, each exactly once", ""),
    "reload_dataloaders_every_n_epochs": ("the loaders stay, and shuffle anew in each epoch", ""),
    "enable_autolog_hparams": ("config.yaml and W&B get all options", ""),
    "model_registry": ("it belongs to Lightning's own cloud", "wandb.log_model=true"),
}
"""Arguments that are not taken: why, and what to try."""
LENGTHS = ("max_epochs", "max_steps")
"""Arguments that set the length of a run."""
COUNTS = ("check_val_every_n_epoch", "accumulate_grad_batches", "num_nodes")
SHORT_PRECISIONS = ("32", "bf16", "16", "64")
"""Lightning's short names of them."""
TRAINED_AND_TESTED = ("limit_train_batches", "limit_test_batches")


@functools.cache
def lightnings_arguments() -> dict[str, set[str]]:
    """Return the names of the types of each of the Trainer's arguments.

    They are read from its source: importing it takes twelve seconds.
    """
    root = importlib.util.find_spec("lightning").submodule_search_locations[0]  # type: ignore[union-attr,index]
    tree = ast.parse((Path(root) / "pytorch/trainer/trainer.py").read_text())
    init = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments = [argument for argument in init.args.args + init.args.kwonlyargs if argument.annotation]
    types = {argument.arg: re.findall(r"\w+", ast.unparse(argument.annotation)) for argument in arguments}  # type: ignore[arg-type]
    return {name: {*names} - {"Optional", "Union"} for name, names in types.items()}


def trainer_arguments() -> tuple[str, ...]:
    """Return the names of the Trainer's arguments that a run takes."""
    return tuple(name for name in lightnings_arguments() if name not in OURS)


def check_trainer(arguments: dict[str, Any]) -> None:
    """Raise an error for pydantic where an argument is not accepted; Lightning checks the others."""
    for name, value in arguments.items():
        if name in OURS:
            reason, advice = OURS[name]
            raise rejected(", ".join(trainer_arguments()), advice or "--help", f"trainer.{name} is not taken: {reason}")
        if name not in trainer_arguments():
            nearest = nearest_first(name, trainer_arguments())
            raise rejected(", ".join(nearest), f"trainer.{nearest[0]}=...", f"trainer.{name} is not an option")
        accepted = "" if value is None else _accepted_instead(name, value)
        if accepted:
            is_switch = lightnings_arguments()[name] == {"bool"}
            example = {"strategy": "ddp", "precision": "bf16-mixed", "max_epochs": 10, "max_steps": 10}.get(
                name, "true" if is_switch else 1
            )
            raise rejected(accepted, f"trainer.{name}={example}", f"trainer.{name}={value} is not accepted")
    if arguments.get("gradient_clip_algorithm") is not None and arguments.get("gradient_clip_val") is None:
        raise rejected(
            "trainer.gradient_clip_algorithm with trainer.gradient_clip_val, the limit", "trainer.gradient_clip_val=1"
        )


def _accepted_instead(name: str, value: Any) -> str:
    """Return the accepted values of an argument whose value is not among them; otherwise an empty text."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in LENGTHS and not (whole and (value > 0 or value == -1)):
        return f"a whole number for trainer.{name}: 1 or more, or -1 for no end"
    if name in COUNTS and not (whole and value > 0):
        return f"a whole number for trainer.{name}: 1 or more"
    if not _is_of_its_kind(name, value):
        kinds = " or ".join(kind for plain, kind in KINDS.items() if plain in lightnings_arguments()[name])
        given = type(value).__name__
        return f"as in Lightning's Trainer, {kinds or KINDS['str']}, not {KINDS.get(given, given)}"
    if name in TRAINED_AND_TESTED and not value:
        return "at least one batch: a run ends with the test of what it has trained"
    if name == "precision" and str(value) not in PRECISIONS + SHORT_PRECISIONS:
        return f"null, {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}; weights stay in float32, or float64"
    if name == "gradient_clip_val" and not value >= 0:
        return "a number above 0; 0 or null: nothing is clipped"
    if name == "strategy" and any(way in str(value) for way in ("spawn", "fork", "notebook")):
        return "auto, ddp, or another strategy that starts its processes by the same command"
    return ""


def _is_of_its_kind(name: str, value: Any) -> bool:
    """Return whether an argument takes values of this type; Lightning checks those that may be texts or objects."""
    types, given = lightnings_arguments()[name], type(value).__name__
    takes_objects = not types <= {"bool", "int", "float"}
    return given in types or (given == "int" and "float" in types) or (takes_objects and given != "bool")
