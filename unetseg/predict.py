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
import glob
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
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

NAMED = 5
"""Files that are named where more are counted."""
MANY = 10_000
"""Pictures in further folders are counted up to here."""


@dataclass(frozen=True)
class Selection:
    """The files that `images` selects, and those that it doesn't."""

    files: list[Path]
    """The pictures."""
    others: list[Path]
    """Other files of the folder."""
    below: int
    """The number of pictures in folders of the folder."""
    channels: dict[Path, dict[str, Path]] = field(default_factory=dict)
    """The file of each channel of those pictures that have several; such a picture's path is no file's."""

    def notes(self) -> list[str]:
        """Return a sentence on each kind of files that aren't predicted."""
        lines = []
        if self.others:
            names = ", ".join(shown(path.name) for path in self.others[:NAMED])
            more = ", ..." if len(self.others) > NAMED else ""
            lines.append(f"{len(self.others)} passed over, by their names no pictures: {names}{more}")
        if self.below:
            count = f"{self.below} or more" if self.below == MANY else self.below
            lines.append(f"{count} pictures in further folders are not taken: images='FOLDER/**/*' takes them")
        return lines


def predict(options: Predict) -> list[Path]:
    """Write the masks of all pictures; return the pictures that could not be read or written."""
    from unetseg.inference.outputs import Outputs, lock_folder
    from unetseg.inference.predictor import load

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
            left_out = predict_each(due, model, outputs, selection.channels)
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


def predict_each(
    paths: list[Path], model: Predictor, outputs: Outputs, channels: Mapping[Path, Mapping[str, Path]] | None = None
) -> list[Path]:
    """Write the outputs of each picture; name and return the pictures that can't be read or written.

    Args:
        paths: of the pictures.
        model: predicts them.
        outputs: writes them.
        channels: the file of each channel of those pictures that have several.

    Raises:
        OSError: nothing more can be written, as the disk is full or read-only.
    """
    from rich.console import Console
    from rich.progress import track

    from unetseg.data.joined import join_files, order_bands
    from unetseg.data.pictures import open_picture
    from unetseg.data.volumes import Volume, has_slices

    channels = channels or {}
    order = model.view.bands or order_bands(band for files in channels.values() for band in files)
    if channels:
        say(f"channels of a picture, in this order: {', '.join(order)}")

    def bands(picture: Picture) -> Iterator[np.ndarray]:
        return next(model.bands([picture]))

    console = Console(stderr=True)
    left_out = []
    for path in track(paths, "predicting", console=console):
        try:
            if path not in channels and has_slices(path, model.view):
                outputs.write(path, Volume(path, model.view), bands)
                continue
            own = join_files(path.stem, channels[path], order) if path in channels else path
            with open_picture(own, model.view) as picture:
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


def select_channels(images: str, output: Path) -> Selection:
    """Return the pictures whose channels are files of their own, by a pattern such as FOLDER/{name}_{channel}.tif."""
    from unetseg.data.layout import Pattern, files_below, find
    from unetseg.data.pictures import IMAGE_SUFFIXES
    from unetseg.data.published import channels_of

    fixed = Path(re.split(r"[{*]", images)[0] + "x").parent
    pattern = Pattern("images", Path(images).relative_to(fixed).as_posix())
    if pattern.fields != {"name", "channel"}:
        raise UserError(f"images={images} is not accepted", accepted="FOLDER/{name}_{channel}.tif, with both fields")
    inside = [file for file in files_below(fixed) if file.lower().endswith((*IMAGE_SUFFIXES, ".npy"))]
    if output.resolve() != fixed.resolve():  # which is refused
        inside = [file for file in inside if output.resolve() not in (fixed / file).resolve().parents]
    found = find(fixed, inside, pattern)
    pictures = {
        fixed / f"{place.name.replace('/', '_')}.channels": {
            channel: fixed / file for channel, file in channels_of(pattern, files).items()
        }
        for place, files in found.items()
    }
    if len(pictures) < len(found):
        raise UserError(f"images={images} has names that differ in / and _ alone", accepted="one mask for each name")
    return Selection([*pictures], [], 0, pictures)


def select_files(images: str, output: Path) -> Selection:
    """Return the file itself, the pictures in the folder, or the files of the pattern.

    Args:
        images: the option.
        output: folder of the masks, which don't count as pictures below a folder.
    """
    from unetseg.data.published import SUFFIXES

    def has_ending(name: str) -> bool:
        return name.lower().endswith(SUFFIXES)

    def is_picture(name: str) -> bool:
        return has_ending(name) and not name.startswith(".")

    path = Path(images)
    if "{channel}" in images and not path.exists():
        return select_channels(images, output)
    if path.is_dir():
        inside = sorted(path.iterdir())
        files = [p for p in inside if is_picture(p.name)]
        hidden = {p for p in inside if p.name.startswith(".") and not has_ending(p.name)}
    else:
        inside = [path] if path.exists() else sorted(map(Path, glob.glob(images, recursive=True)))
        files, hidden = [p for p in inside if not p.is_dir()], set()
    taken = {*files, *hidden}
    others = [p for p in inside if p not in taken and not p.is_dir()]
    below = (p for folder in inside if folder.is_dir() for p in _files_below(folder, output) if is_picture(p.name))
    return Selection(files, others, len(set(islice(below, MANY)) - taken))


def _files_below(folder: Path, output: Path) -> Iterator[Path]:
    """Yield all files below a folder, except those of the output."""
    for parent, folders, names in os.walk(folder):
        if Path(parent).resolve() == output.resolve():
            folders.clear()
        else:
            yield from (Path(parent, name) for name in names)


def check_files(options: Predict) -> None:
    """Raise a UserError if there is no picture, or two files would have one name: of masks, overlays and pictures."""
    from unetseg.data.legend import STEM
    from unetseg.data.published import SUFFIXES
    from unetseg.inference.outputs import stem

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
