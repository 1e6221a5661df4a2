"""Segment pictures with a trained model: masks as PNGs with a palette, and the classes' shares.

python -m unetseg.predict checkpoint=runs/NAME images=photos output=masks           a folder
python -m unetseg.predict checkpoint=FILE.onnx images='photos/*.jpg' output=masks   a quoted pattern
python -m unetseg.predict checkpoint=runs/NAME images=a.tif output=masks tile=512   full resolution

What is there already is kept, so that the same command goes on after a stop. Pictures that can't
be read or written are named and left out, and the exit status is 1; what a folder holds besides is
counted and named.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unetseg.errors import UserError
from unetseg.names import shown
from unetseg.options import command
from unetseg.options.command_schema import Predict
from unetseg.options.output import FULL, check_writable, explain_write_errors, say, shown_lines

if TYPE_CHECKING:
    import numpy as np

    from unetseg.data.pictures import Picture
    from unetseg.inference.outputs import Outputs
    from unetseg.inference.predictor import Predictor
    from unetseg.inference.selection import Selection


def predict(options: Predict) -> list[Path]:
    """Write the masks of all pictures; return the pictures that could not be read or written."""
    from unetseg.inference.outputs import Outputs, lock_folder
    from unetseg.inference.predictor import load
    from unetseg.inference.selection import select_files

    model = load(
        options.checkpoint,
        device={"gpu": "cuda"}.get(options.accelerator, options.accelerator),
        precision=options.precision,
        tile=options.tile,
        overlap=options.overlap,
        tta=options.tta,
        batch_size=options.batch_size,
        runtime=options.runtime,
        trust=options.trust,
    )
    output = Path(options.output)
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        with lock_folder(output):
            outputs = Outputs(
                output,
                model.classes,
                overlay=options.overlay,
                probability=options.probability,
                overwrite=options.overwrite,
                view=model.view,
            )
            selection = select_files(options.images, output)
            due = [path for path in selection.files if not outputs.is_complete(path)]
            left_out = predict_each(due, model, outputs, selection)
            outputs.write_table()
    kept = len(selection.files) - len(due)
    counts = f"{len(due) - len(left_out)} predicted, {kept} kept, {len(left_out)} unreadable: {outputs.table}"
    if kept:
        counts += "; overwrite=true predicts the kept ones again"
    say("\n".join([counts, *selection.notes()]))
    if options.overlay:
        say(f"the colours of the classes: {outputs.legend}")
    else:
        say("next: the same command with overlay=true overwrite=true draws the masks over the pictures")
    return left_out


def predict_each(paths: list[Path], model: Predictor, outputs: Outputs, selection: Selection) -> list[Path]:
    """Write the outputs of each picture; name and return the pictures that can't be read or written.

    Args:
        paths: of the pictures that are due.
        model: predicts them.
        outputs: writes them.
        selection: opens them.

    Raises:
        OSError: nothing more can be written, as the disk is full or read-only.
    """
    from rich.console import Console
    from rich.progress import track

    if selection.channels:
        say(f"channels of a picture, in this order: {', '.join(selection.order(model.view))}")

    def bands(picture: Picture) -> Iterator[np.ndarray]:
        return next(model.bands([picture]))

    console = Console(stderr=True)
    left_out = []
    for path in track(paths, "predicting", console=console):
        try:
            with selection.open(path, model.view) as picture:
                outputs.write(path, picture, bands)
        # the name may be too long, or the picture need more memory than there is: go on with the others
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno in (*FULL, errno.EROFS):
                raise
            left_out.append(path)
            name = shown(path)
            reason = shown_lines(str(error).replace(str(path), name).strip() or type(error).__name__)
            text = f"left out: {reason}" if name in reason else f"left out: {name}: {reason}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return left_out


def check_files(options: Predict) -> None:
    """Raise a UserError if there is no picture, or two files would have one name: of masks, overlays and pictures."""
    from unetseg.data.legend import STEM
    from unetseg.data.published import SUFFIXES
    from unetseg.inference.outputs import stem
    from unetseg.inference.selection import select_files

    output = Path(options.output)
    check_writable(output)
    selection = select_files(options.images, output)
    if not selection.files:
        raise UserError(
            "; ".join([f"images={options.images} holds no picture", *selection.notes()]),
            accepted=", ".join(SUFFIXES),
            advice="images=FILE",
        )
    first: dict[str, Path] = {}
    for path in selection.files:
        name = stem(path)
        if name in first:
            raise UserError(
                f"{shown(first[name])} and {shown(path)} would have masks of the same name, {shown(name)}",
                accepted="pictures whose names differ without their endings",
                advice=f"two commands, images='DIR/*{path.suffix}' and another, with an output=... each",
            )
        first[name] = path
        if options.overlay and name.lower() == STEM:
            raise UserError(
                f"{shown(path)} would have the overlay {STEM}.png, which names the colours of the classes",
                accepted="pictures of other names",
                advice="overlay=false",
            )
        sources = selection.channels.get(path, {}).values() or [path]
        if any(source.resolve().parent == output.resolve() for source in sources):
            raise UserError(
                f"output={options.output} holds the picture {shown(path.name)}, which a mask might replace",
                accepted="a folder without the pictures",
                advice=f"output={output / 'masks'}",
            )


def main() -> None:
    if any(command.run("predict", Predict, predict, preflight=check_files, about=__doc__)):
        sys.exit(1)


if __name__ == "__main__":
    main()
