"""The differences between sets of options, and the names that settings and runs get from them.

Options are plain values, as in a config.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from unetseg.names import alike, is_own, one_word
from unetseg.options.messages import format_value

NO_DIFFERENCE = (
    *("name", "output", "resume", "trust", "allow_changes", "dry_run", "find_lr", "sweep", "jobs", "search", "trials"),
    *("checkpoint.every_n_minutes", "checkpoint.every_n_steps", "trainer.enable_progress_bar"),
    *("data.workers", "data.check"),
)
"""Options, or sections of them, that don't change the results of a run: where its folder lies, what is shown, how
pictures are loaded and when the run is saved."""


OWN = ("model.skip", "model.decoder", "loss", "callbacks", "data.source")
"""Options that may name a class of the user's own."""
TABLES = ("loss", "optimizer.arguments", "model.skip", "model.decoder", "data.source")
"""Options whose value may be a table, and which are no sections for that."""


PER_LEVEL = ("model.skip", "model.skip_flow", "model.skip_gradient", "model.skip_scale")
"""Options of which earlier runs recorded a list of equal values as it was given."""


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their dotted keys."""
    by_key: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in TABLES:
            by_key |= flat(value, f"{name}.")
        else:
            by_key[name] = alike(value) if name in PER_LEVEL else value
    return by_key


def differences(recorded: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Return the differences of options from those of a config.yaml, "key: recorded -> new" each."""
    before, now = flat(recorded), flat(options)
    return [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if not begins_with(key, NO_DIFFERENCE)
        and not (key == "data.cache" and "device" not in (before.get(key), now.get(key)))
        and before.get(key) != now.get(key)
    ]


def axes_of(runs: Sequence[dict[str, Any]], ignored: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Return the options in which runs differ, each with its values in the order of the runs.

    A run that is older than an option lacks it, which is no difference. The Trainer's arguments are compared in all
    runs, as a run records only those that the user sets.

    Args:
        runs: their options.
        ignored: keys, or sections that end in a dot, which are no axes.
    """
    tables = [{key: value for key, value in flat(run).items() if not begins_with(key, ignored)} for run in runs]
    axes = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        compared = tables if key.startswith("trainer.") else [table for table in tables if key in table]
        values = list({json.dumps(table.get(key)): table.get(key) for table in compared}.values())
        if len(values) > 1:
            axes[key] = values
    return axes


def own_classes(options: dict[str, Any]) -> dict[str, str]:
    """Return the option of each class of the user's own that validated options name, by the class.

    Examples:
        >>> own_classes({"model": {"skip": ["none", "my_skips:Maximum"]}, "loss": "dice"})
        {'my_skips:Maximum': 'model.skip'}
    """
    values = flat(options)
    named = {key: values.get(key) for key in OWN}
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    return {str(entry): key for key, entries in lists.items() for entry in entries if is_own(entry)}


def trust_of(options: dict[str, Any]) -> str:
    """Return what a command is to be given so that it may import the classes which a run's options name.

    Examples:
        >>> trust_of({"loss": "my_losses:Power"}), trust_of({"loss": "dice"})
        (' trust=true', '')
    """
    return " trust=true" if {*own_classes(options).values()} - {"callbacks"} else ""  # those are of a training alone


def begins_with(key: str, keys: Sequence[str]) -> bool:
    """Return whether a dotted key is among `keys`, or lies in a section among them (which ends in a dot)."""
    return any(key == one or (one.endswith(".") and key.startswith(one)) for one in keys)


def override(key: str, value: Any) -> str:
    r"""Return a setting as an override for Hydra. A text comes back as it was: nothing is put in the place of `${...}`.

    Examples:
        >>> print(override("name", "my run"), override("name", "${oc.env:HOME}"), override("allow_changes", ["seed"]))
        name="my run" name="\${oc.env:HOME}" allow_changes=["seed"]
    """
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_quoted(entry)}' for key, entry in value.items())}}}"
    if not isinstance(value, str):
        return json.dumps(value)
    # backslashes are themselves, except those before OmegaConf's ${, a quote, and the end
    no_interpolation = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    inside = re.sub(r'(\\*)"', r'\1\1\\"', no_interpolation)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", inside) + '"'


IN_THE_VARIANT = tuple(
    f"model.{name}"
    for name in (
        *("skip", "decoder", "skip_flow", "skip_gradient", "skip_scale", "stem_skip"),
        *("auxiliary", "deep_supervision", "match_parameters", "short_skips"),
    )
)
"""The options that `variant` is made of."""


def variant(model: dict[str, Any]) -> str:
    """Return the name of a model in an ablation: "add", "concat backward", "concat dose 0.5", "none matched"."""
    model = {name: alike(value) for name, value in model.items()}
    words = [one_word(model["skip"])]
    if model["skip_flow"] != "both":
        words.append(one_word(model["skip_flow"]))
    if model.get("skip_gradient", 1.0) != 1:  # runs that are older than the option lack it
        words.append(f"dose {one_word(model['skip_gradient'])}")
    if model.get("skip_scale", 1.0) != 1:
        words.append(f"scale {one_word(model['skip_scale'])}")
    if model.get("stem_skip"):
        words.append("stem")
    if model.get("auxiliary"):
        words.append("auxiliary")
    if model.get("deep_supervision"):
        words.append("deep-supervision")
    if model.get("decoder"):
        words.append(f"decoder {model['decoder']}")
    if model["match_parameters"]:
        words.append("matched")
    if model["short_skips"] is not True:
        words.append(f"short {model['short_skips']}" if model["short_skips"] else "plain")
    return " ".join(words)


def table_text(table: dict[str, Any]) -> str:
    """Return the table of an option in words.

    Examples:
        >>> table_text({"dice": 1.0, "tversky": {"weight": 0.5, "alpha": 0.3}})
        'dice 1 + tversky 0.5 alpha 0.3'
    """

    def words(entry: Any) -> str:
        if not isinstance(entry, dict):
            return format_value(entry)
        return " ".join(format_value(v) if key == "weight" else f"{key} {format_value(v)}" for key, v in entry.items())

    return " + ".join(f"{name} {words(entry)}" for name, entry in table.items())


def setting_name(options: dict[str, Any], axes: Iterable[str]) -> list[str]:
    """Return the words that name a setting: its variant, and key=value for the other options that vary.

    Args:
        options: of a run of this setting.
        axes: keys of the options that vary among the runs; the seed is no part of a setting.
    """
    values = flat(options)
    others = [key for key in axes if key != "seed" and key not in IN_THE_VARIANT and key in values]
    short = {key: "data" if key == "data.name" else key.rpartition(".")[2] for key in others}
    texts = {
        key: table_text(value) if isinstance(value, dict) else format_value(value) for key, value in values.items()
    }
    return [variant(options["model"]), *(f"{name}={texts[key]}" for key, name in short.items())]


def run_name(options: dict[str, Any], axes: Iterable[str]) -> str:
    """Return the folder name of a run in a sweep: its setting and its seed."""
    words = [*setting_name(options, axes), f"seed{options['seed']}"]
    name = "_".join(words).replace(" + ", "+").replace(" ", "-").replace("/", "-")
    return name.replace(":", ".").replace("(", "-").translate(dict.fromkeys(map(ord, "()'\""), None))


def timed_name(options: dict[str, Any]) -> str:
    """Return the folder name of a single run: data, encoder, setting, seed and the time."""
    start = f"{options['data']['name']}_{options['model']['encoder']}_{run_name(options, ())}"
    return f"{start}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
