"""W&B artifacts: a model by its address instead of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetseg.errors import UserError, first_line
from unetseg.model.archive import LARGEST

PREFIX = "wandb:"


def fetch(address: str) -> Path:
    """Download best.ckpt of the artifact wandb:ENTITY/PROJECT/NAME:ALIAS of `wandb.log_model=true`; return its path.

    Nothing else of the artifact is downloaded.

    Raises:
        UserError: there is no such artifact, no key or no network; the artifact holds no best.ckpt, a link in its
            place, or one that is larger than `model.archive.LARGEST`.
    """
    import wandb

    name = address.removeprefix(PREFIX)
    try:
        entry = wandb.Api(timeout=20).artifact(name, type="model").manifest.entries.get("best.ckpt")
        problem = _problem(entry)
        if not problem:
            return Path(entry.download())
    except (wandb.errors.Error, ValueError, OSError) as error:  # a key, an address or a network that doesn't work
        raise UserError(
            f"{address} can't be fetched: {first_line(error)}",
            accepted=f"{PREFIX}ENTITY/PROJECT/NAME:ALIAS of a model that wandb.log_model=true has uploaded",
            advice="the path of its checkpoint",
        ) from None
    raise UserError(f"{address} {problem}", accepted="an artifact of wandb.log_model=true")


def _problem(entry: Any) -> str | None:
    """Return why an artifact's entry is not downloaded, or None."""
    if entry is None:
        return "holds no best.ckpt"
    if entry.ref is not None:
        return "holds a link to best.ckpt elsewhere"
    if entry.size is None or entry.size > LARGEST:
        return f"holds a best.ckpt of more than {LARGEST >> 30} GiB"
    return None
