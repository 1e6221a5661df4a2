"""W&B artifacts: a model by its address instead of its file."""

from __future__ import annotations

from pathlib import Path

from unetseg.errors import UserError, first_line

PREFIX = "wandb:"


def fetch(address: str) -> Path:
    """Download the artifact wandb:ENTITY/PROJECT/NAME:ALIAS of `wandb.log_model=true`; return its checkpoint's path.

    Raises:
        UserError: there is no such artifact, no key, no network, or the artifact holds no best.ckpt.
    """
    import wandb

    name = address.removeprefix(PREFIX)
    try:
        folder = wandb.Api(timeout=20).artifact(name, type="model").download()
    except (wandb.errors.Error, ValueError, OSError) as error:  # a key, an address or a network that doesn't work
        raise UserError(
            f"{address} can't be fetched: {first_line(error)}",
            accepted=f"{PREFIX}ENTITY/PROJECT/NAME:ALIAS of a model that wandb.log_model=true has uploaded",
            advice="the path of its checkpoint",
        ) from None
    path = Path(folder) / "best.ckpt"
    if not path.is_file():
        raise UserError(f"{address} holds no best.ckpt", accepted="an artifact of wandb.log_model=true")
    return path
