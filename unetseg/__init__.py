"""unetseg: U-Nets whose long skip connections can be switched, measured and explained."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetseg.inference.export import save_pretrained
    from unetseg.inference.predictor import load

__all__ = ["load", "save_pretrained"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for, so that a wrong option on the command line fails at once."""
    match name:
        case "load":
            from unetseg.inference.predictor import load

            return load
        case "save_pretrained":
            from unetseg.inference.export import save_pretrained

            return save_pretrained
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
