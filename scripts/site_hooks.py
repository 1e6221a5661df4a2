"""Hooks of mkdocs: the tables of options, made from the schema that checks them.

`make docs` builds the site into site/; `make docs-serve` shows it while you write.
"""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf

from unetseg.options.choices import COMMANDS
from unetseg.options.compose import compose_config
from unetseg.options.messages import format_value
from unetseg.options.schema import Train
from unetseg.options.settings import flat
from unetseg.options.validation import describe

NEW = {
    "0.2": {
        *(
            "callbacks",
            "data.check",
            "dry_run",
            "data.range",
            "gradient",
            "gradients.routes",
            "gradients.routes_every_n_steps",
            "model.auxiliary",
            "model.deep_supervision",
        ),
        *("model.decoder", "model.skip_scale", "model.stem_skip", "freeu"),
        *("model.skip_gradient", "model.strict_weights", "model.freeze_encoder", "class_weights", "boundary_weight"),
        *(f"optimizer.{name}" for name in ("name", "encoder_lr_factor", "arguments", "schedule", "warmup_epochs")),
        *("optimizer.patience", "optimizer.ema", "early_stopping", "find_lr", "data.bands"),
        *("plan", "pooled", "search", "tolerance", "trials", "trust", "wandb.images"),
        *("data.fit", "data.crop", "data.scale", "data.foreground", "data.crops"),
        *("data.channels", "data.mean", "data.std", "data.shown"),
        *("data.images", "data.masks", "data.values", "data.threshold", "data.instances", "data.group"),
        *("data.stratify", "data.folds", "data.fold", "data.config", "data.revision", "data.image", "data.mask"),
        *("data.source", "checkpoint.choose"),
    }
}
"""The options that a version brought; all others are of 0.1."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table in the place of each `<!-- options: COMMAND OVERRIDE -->`."""
    return re.sub(r"<!-- options: (\w+) ?(\S*) -->", lambda match: table(match[1], match[2]), markdown)


def table(command: str, override: str = "") -> str:
    """Return a command's options as a table in Markdown; with data=NAME only those of that data set."""
    schema = COMMANDS[command]
    values: Any = OmegaConf.to_container(compose_config(command, schema, [override] if override else []))
    options = describe(schema, values)
    if command == "ablate":
        options = {key: text for key, text in options.items() if key not in describe(Train, values)}
    if override:
        others = describe(schema, {"data": {"name": "pets"}})
        options = {key: text for key, text in options.items() if key not in others}
    rows = [
        f"| `{key}` | {_default(values, key)} | {_escape(text)} | {_since(key)} |"
        for key, text in options.items()
        if not key.startswith("trainer.")
    ]
    return "\n".join(["| option | default | meaning | since |", "| --- | --- | --- | --- |", *rows])


def _default(values: Any, key: str) -> str:
    value = flat(values).get(key, "")
    return "required" if value == "???" else f"`{_escape(format_value(value))}`"


def _since(key: str) -> str:
    return next((version for version, options in NEW.items() if key in options), "0.1")


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
