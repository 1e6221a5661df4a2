"""Validated options, or one message on everything that is wrong: the problem, what is accepted, what to try."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from unetseg.errors import UserError
from unetseg.names import nearest_first
from unetseg.options.data_schema import DATA
from unetseg.options.messages import KINDS, format_value
from unetseg.options.section import Section
from unetseg.options.trainer import trainer_arguments

Schema = TypeVar("Schema", bound=Section)

ALIASES = {
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("steps", "iterations", "num_steps"), "trainer.max_steps"),
    **dict.fromkeys(("gpus", "gpu", "n_gpus", "num_gpus"), "trainer.devices"),
    **dict.fromkeys(("device", "cuda", "cpu"), "trainer.accelerator"),
    **dict.fromkeys(("learning_rate", "learningrate", "eta"), "optimizer.lr"),
    **dict.fromkeys(("wd", "decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("batch", "bs", "batchsize"), "data.batch_size"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("image_size", "img_size", "imgsz", "resolution"), "data.size"),
    **dict.fromkeys(("crop_size", "patch_size", "tile_size", "roi_size"), "data.crop"),
    **dict.fromkeys(("augmentation", "augmentations"), "data.augment"),
    **dict.fromkeys(("dir", "data_dir", "path", "folder"), "data.root"),
    "dataset": "data",
    **dict.fromkeys(("backbone", "arch", "architecture", "model"), "model.encoder"),
    **dict.fromkeys(("pretrained", "encoder_weights"), "model.weights"),
    **dict.fromkeys(("skips", "skip_connections", "long_skips"), "model.skip"),
    **dict.fromkeys(("ckpt", "model_path"), "checkpoint"),
    **dict.fromkeys(("amp", "fp16", "bf16"), "trainer.precision"),
    **dict.fromkeys(("out", "output_dir", "save_dir"), "output"),
    **dict.fromkeys(("input", "image"), "images"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
}
"""What options are called elsewhere."""
WANTED = {
    "int_type": KINDS["int"],
    "float_type": "a number",
    "bool_type": KINDS["bool"],
    "string_type": KINDS["str"],
    "list_type": KINDS["list"],
}
"""What an option takes, by the type of pydantic's error where a value of another kind is given."""


COMMON = ("name", "root", "mode")
"""Last words of options that say nothing without their sections."""


def validate(schema: type[Schema], options: dict[str, Any]) -> Schema:
    """Return `options` as a `schema`, or raise a UserError that lists everything that is wrong."""
    try:
        return schema.model_validate(options)
    except ValidationError as error:
        raise UserError("\n".join(str(_explain(schema, options, entry)) for entry in error.errors())) from None


def unknown_option(schema: type[Section], options: dict[str, Any], key: str, value: str = "...") -> UserError:
    """Return the error for a key that no option has.

    Args:
        schema: of the options.
        options: as composed; they name the data set.
        key: as given.
        value: as given, for the advice.
    """
    section, _, name = key.rpartition(".")
    descriptions = describe(schema, options)
    if section in descriptions:  # an option and no section: loss.dice
        return UserError(f"{key} is not an option", accepted=descriptions[section], advice=f"{section}=...")
    known = list(descriptions)
    siblings = nearest_first(key, [name for name in known if name.rpartition(".")[0] == section] or known)
    others = [data for data, fields in DATA.items() if section == "data" and name in fields.model_fields]
    if others:
        problem = f"{key} is not an option of data={options['data']['name']}, but of data={', '.join(map(str, others))}"
        return UserError(problem, accepted=", ".join(siblings[:8]), advice=f"data={others[0]}")
    meant = likeliest(key, known)
    accepted = dict.fromkeys([meant, *siblings] if meant else siblings)
    advice = f"{meant}={value}" if meant else "--help"
    return UserError(f"{key} is not an option", accepted=", ".join([*accepted][:8]), advice=advice)


def likeliest(key: str, known: Sequence[str]) -> str:
    """Return the option that is meant by a key that none has; an empty text where none is like it.

    Its last word may be that of an option (lr: optimizer.lr), another name for one (epochs: trainer.max_epochs), or be
    misspelt in the section that is given, or anywhere.

    Examples:
        >>> likeliest("epochs", ["seed", "optimizer.lr", "trainer.max_epochs"])
        'trainer.max_epochs'
    """
    section, _, name = key.rpartition(".")
    last_words = {option.rpartition(".")[2]: option for option in reversed(known)}
    meant = (name not in COMMON and last_words.get(name.lower())) or ALIASES.get(name.lower(), "")
    if meant in known or (meant == "data" and "data.name" in known):
        return meant
    siblings = {option.rpartition(".")[2]: option for option in known if option.rpartition(".")[0] == section}
    words = siblings if section and siblings else last_words
    return next((words[word] for word in difflib.get_close_matches(name, words, n=1)), "")


def known_options(schema: type[Section]) -> list[str]:
    """Return the dotted keys of all options, with those of every data set."""
    names = DATA if "data" in schema.model_fields else [None]
    return list(dict.fromkeys(key for name in names for key in describe(schema, {"data": {"name": name}})))


def describe(schema: type[Section], options: dict[str, Any]) -> dict[str, str]:
    """Return the description of every option by its dotted key; `options` names the data set, whose own are listed."""
    lines: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        section = DATA.get(options.get("data", {}).get("name")) if name == "data" else field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            lines |= {f"{name}.{key}": text for key, text in describe(section, {}).items()}
        elif name == "trainer":
            lines |= {f"trainer.{argument}": "as in Lightning's Trainer" for argument in trainer_arguments()}
        else:
            lines[name] = field.description or ""
    return lines


def _as_given(value: object) -> str:
    """Return a value as it was written where it may be mistaken for one of another kind: 3.0 and '3' are not 3."""
    if isinstance(value, str) and re.fullmatch(r"[-+.\d]+|true|false|null", value):
        return f"'{value}'"
    return str(value) if isinstance(value, float) and value.is_integer() else format_value(value)


def _explain(schema: type[Section], options: dict[str, Any], error: Any) -> UserError:
    """Return the error for one entry of pydantic's ValidationError."""
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["data"] and len(path) > 1:
        del path[1]  # pydantic names the chosen member of the union there
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return unknown_option(schema, options, key, format_value(error["input"]))
    if error["type"] == "model_type":
        members = [option for option in describe(schema, options) if option.startswith(f"{key}.")]
        return UserError(
            f"{key}={format_value(error['input'])} is not accepted",
            accepted=f"options of {key}: {', '.join(members)}",
            advice=f"{members[0]}=...",
        )
    context = error.get("ctx", {})
    accepted = context.get("accepted") or error["msg"].removeprefix("Input should be ").removeprefix(
        "a valid "
    ).replace("'", "")
    if error["type"] in ("missing", "missing_argument"):
        accepted = describe(schema, options).get(key, "a value")
        return UserError(f"{key} is not given", accepted=accepted, advice=f"{key}=...")
    if error["type"] in WANTED:
        kind = type(error["input"]).__name__
        accepted = f"{WANTED[error['type']]}, not {KINDS.get(kind, kind)}"
    advice = context.get("advice") or "--help"
    if context.get("problem"):
        return UserError(context["problem"], accepted=accepted, advice=advice)
    problem = f"{key}={_as_given(error['input'])} is not accepted"
    if not key or any(option.startswith(f"{key}.") for option in describe(schema, options)):
        problem = f"these options{f' of {key}' if key else ''} don't go together"
    is_setting = "=" in advice or advice.startswith("--") or not key
    return UserError(
        problem,
        accepted=accepted,
        advice=advice if is_setting else f"{key}={advice}",
    )
