"""Export a checkpoint for other runtimes, and compare the file with the checkpoint.

python -m unetseg.export checkpoint=runs/NAME output=model.onnx     for onnxruntime and unetseg.load
python -m unetseg.export checkpoint=runs/NAME output=model.onnx int8=PICTURES     in 8-bit integers
python -m unetseg.export checkpoint=runs/NAME output=model.pt2      for torch.export.load

Both take pictures as they come and give probabilities, see `unetseg.inference.export`; a .pt2 is
opened by unetseg.load with trust=True. As a folder of the Hugging Face Hub:
`unetseg.save_pretrained("runs/NAME", FOLDER)`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetseg.errors import UserError
from unetseg.names import counted, shown
from unetseg.options import command
from unetseg.options.command_schema import Export
from unetseg.options.output import check_writable, explain_write_errors, say

if TYPE_CHECKING:
    import numpy as np

PACKAGES: dict[str, tuple[str, ...]] = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
"""What an export needs beyond the package's own requirements, by its suffix."""
NAMED = 4
"""Shapes that are named where more are counted."""


def export(options: Export) -> Path:
    """Write the file, print how far it is from the checkpoint, and return its path."""
    from unetseg.inference.export import export as write
    from unetseg.model import checkpoint

    check(options)
    model, known = checkpoint.load(options.checkpoint, trust=options.trust)
    output = Path(options.output)
    inputs, others = calibration(options.int8, known) if options.int8 else ([], [])
    if inputs:
        say(f"measuring the ranges of the activations on {counted(len(inputs), 'input')} of the model")
    with explain_write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        checks = write(model, metadata(options.checkpoint, known), output, inputs, others)
    where = "in float32, " if options.int8 else ""
    shapes = [*checks.errors]
    named = ", ".join(shapes[:NAMED]) + (f" and {len(shapes) - NAMED} other shapes" if len(shapes) > NAMED else "")
    lines = [f"{where}pictures {named}: probabilities within {max(checks.errors.values()):.1e} of the checkpoint's"]
    for runtime, changes in checks.changed.items():
        agreement = ", ".join(f"{name} {iou:.3f}" for name, iou in changes.agreement.items())
        lines.append(
            f"in int8 by {runtime}, on {counted(len(others), 'further input')}: {changes.share:.2%} of the pixels get "
            f"another class; IoU with float32's: {agreement}"
        )
    say("\n".join([*lines, shown(output)]))
    return output


def calibration(images: str, known: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what the model gets of some of the pictures that `images` selects, see `quantization.inputs_of`."""
    from rich.console import Console
    from rich.progress import track

    from unetseg.data.view import View
    from unetseg.inference.quantization import FLAT, flatness, inputs_of
    from unetseg.inference.selection import select_files

    selection = select_files(images, Path(os.devnull))
    notes = selection.notes("int8")
    if not selection.files:
        raise UserError("; ".join([f"int8={images} holds no picture", *notes]), advice="some of the training pictures")
    if notes:
        say("\n".join(notes))
    console = Console(stderr=True)
    inputs, others = inputs_of(
        selection,
        tuple(known["classes"]),
        View.of(known["data"]),
        lambda paths: track(paths, "reading pictures for int8", console=console),
    )
    if (share := flatness(inputs)) > FLAT:
        say(f"warning: four values make up {share:.0%} of int8={images}: are these masks? Give pictures as in training")
    return inputs, others


def check(options: Export) -> None:
    """Raise a UserError where the file can't be written or the packages for it are absent."""
    output = Path(options.output)
    if output.suffix not in PACKAGES:
        raise UserError(
            f"output={output} is not accepted", accepted="FILE.onnx or FILE.pt2", advice="output=model.onnx"
        )
    if Path(options.checkpoint).suffix in PACKAGES:
        raise UserError(
            f"checkpoint={options.checkpoint} is an export already",
            accepted="a run folder or a checkpoint",
            advice="checkpoint=runs/NAME",
        )
    if options.int8 and output.suffix != ".onnx":
        raise UserError(f"int8={options.int8} with output={output}", accepted="an .onnx", advice="output=model.onnx")
    if output.is_dir() or (os.path.lexists(output) and not options.overwrite):
        raise UserError(
            f"output={output} exists", accepted="a new file", advice="overwrite=true, or another output=..."
        )
    check_writable(output.parent)
    absent = [name for name in PACKAGES[output.suffix] if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"{output.suffix} needs {', '.join(absent)}", advice="pip install 'unetseg[export]'")


def metadata(path: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of an export: what the model is, takes and gives, and where it comes from.

    Args:
        path: of the checkpoint.
        known: its hyper-parameters.
    """
    from unetseg.runs.summary import provenance

    channels = known["data"].get("channels") or 3
    kind = "3, uint8 RGB" if channels == 3 else f"{channels}, float32 as stored in the files"
    return {
        "input": f"images: pictures x height x width x {kind}",
        "output": "probabilities: pictures x classes x height x width, float32 in 0..1",
        **{name: known[name] for name in ("classes", "loss", "seed")},
        "data": known["data"]["name"],
        **{name: known["data"].get(name) for name in ("range", "mean", "std", "shown", "crop")},
        **{name: known["data"][name] for name in ("size", "fit", "scale") if name in known["data"]},
        "channels": channels,
        **{name: value for name, value in known["model"].items() if name not in ("classes", "channels_last")},
        "checkpoint": path,
        **provenance(),
    }


def work(options: Export) -> Path:
    """Export; end the process with status 1 where the file's probabilities differ from the checkpoint's."""
    from unetseg.inference.export import Mismatch

    try:
        return export(options)
    except Mismatch as error:
        sys.exit(f"unetseg.export: {error}")


def main() -> None:
    for output in command.run("export", Export, work, preflight=check, about=__doc__):
        trust = ", trust=True" if output.suffix == ".pt2" else ""
        say(f'next, in Python: unetseg.load("{shown(output)}"{trust})("picture.jpg")')


if __name__ == "__main__":
    main()
