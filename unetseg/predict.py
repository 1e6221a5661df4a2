"""Segment pictures with a trained model: masks as PNGs with a palette, and a table of the classes' shares.

python -m unetseg.predict checkpoint=runs/NAME images=photos output=masks                 a folder's pictures
python -m unetseg.predict checkpoint=FILE.onnx images='photos/*.jpg' output=masks         a pattern's, quoted
python -m unetseg.predict checkpoint=runs/NAME images=slide.tif output=masks tile=512     at their own resolution
    overlay=true probability=true tta=true overwrite=true                                 more, see --help

What is there already is kept, so that the same command goes on after a stop. Pictures that can't be read are named and
left out, and the exit status is 1.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unetseg.errors import UserError
from unetseg.options import command
from unetseg.options.schema import Predict

if TYPE_CHECKING:
    import numpy as np

    from unetseg.data.pictures import Picture


def predict(options: Predict) -> list[Path]:
    """Write the masks of all pictures; return the pictures that could not be read."""
    from rich.console import Console
    from rich.progress import track

    from unetseg.data.pictures import opened
    from unetseg.inference.outputs import Outputs
    from unetseg.inference.predictor import load

    console = Console(stderr=True)
    model = load(
        options.checkpoint,
        device={"gpu": "cuda"}.get(options.accelerator, options.accelerator),
        precision=options.precision,
        tile=options.tile,
        overlap=options.overlap,
        tta=options.tta,
        batch_size=options.batch_size,
        trust=options.trust,
    )
    outputs = Outputs(
        Path(options.output),
        model.classes,
        overlay=options.overlay,
        probability=options.probability,
        overwrite=options.overwrite,
    )
    files = files_of(options.images)

    def bands(picture: Picture) -> Iterator[np.ndarray]:
        return next(model.bands([picture]))

    due = [path for path in files if not outputs.complete(path)]
    unreadable = []
    for path in track(due, "predicting", console=console):
        try:
            with opened(path) as picture:
                outputs.write(path, picture, bands)
        except UserError as error:
            unreadable.append(path)
            console.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
    outputs.finish()
    kept = len(files) - len(due)
    print(
        f"{len(due) - len(unreadable)} predicted, {kept} kept, {len(unreadable)} unreadable: {outputs.table}"
        + ("; overwrite=true predicts the kept ones again" if kept else "")
    )
    return unreadable


def files_of(images: str) -> list[Path]:
    """Return the pictures that are meant: the file, those in the folder, or those that the pattern finds."""
    from unetseg.data.pictures import IMAGE_SUFFIXES

    path = Path(images)
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return [path] if path.exists() else sorted(p for p in map(Path, glob.glob(images, recursive=True)) if p.is_file())


def check_files(options: Predict) -> None:
    """Raise a UserError if there is no picture, two would have the same mask, or a mask might replace a picture."""
    files = files_of(options.images)
    if not files:
        raise UserError(
            f"images={options.images} holds no picture", accepted=".jpg, .png, .tif ...", advice="images=FILE"
        )
    first: dict[str, Path] = {}
    for path in files:
        if path.stem in first:
            raise UserError(
                f"{first[path.stem]} and {path} would have the same mask, {path.stem}.png",
                accepted="pictures whose names differ without their endings",
                advice=f"two commands, images='DIR/*{path.suffix}' and another, with an output=... each",
            )
        first[path.stem] = path
        if path.resolve().parent == Path(options.output).resolve():
            raise UserError(
                f"output={options.output} holds the picture {path.name}, which a mask might replace",
                accepted="a folder without the pictures",
                advice=f"output={Path(options.output) / 'masks'}",
            )


def main() -> None:
    """Run from the command line."""
    if any(command.run("predict", Predict, predict, preflight=check_files)):
        sys.exit(1)


if __name__ == "__main__":
    main()
