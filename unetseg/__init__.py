"""unetseg: U-Nets whose long skip connections can be switched, measured and explained."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetseg.predictor import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for, so that a wrong option on the command line fails at once."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unetseg.predictor import load

    return load
