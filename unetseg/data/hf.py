"""Keeps the pictures and masks of a Hugging Face data set in a folder, from which they are read like any others.

Pictures are kept as the bytes that the data set has, so that nothing is lost. A mask that is no picture is kept as a
PNG of its values, or as NPY where these don't fit into 8 bits.

Legend: H x W pixels.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from unetseg import launch
from unetseg.data.cache import is_private
from unetseg.data.layout import SPLIT_WORDS
from unetseg.data.splits import LISTS
from unetseg.errors import UserError
from unetseg.huggingface import INFO, Source, names_in
from unetseg.names import counted

GROUP = "{group}_*"
"""The pattern of the names of pictures that belong together."""
ENDINGS = {
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp"},
    **{"PPM": ".ppm", "JPEG2000": ".jp2", "AVIF": ".avif"},
}
"""The endings of files by Pillow's names of their formats."""


def keep(source: Source) -> Path:
    """Write a data set's pictures, masks and lists of its splits into its folder unless they are there; return it.

    Two processes may do so at once: the folder appears whole, and the first one stays.

    Raises:
        UserError: the data set can't be opened, has no such columns, or holds what is no picture or no mask.
    """
    folder = source.folder
    if folder.exists():
        return folder
    splits = source.open()
    features = next(iter(splits.values())).features
    image, mask = source.columns(features)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(folder.parent, 0o022):
            raise UserError(
                f"{folder.parent} is open to others, or theirs", advice="XDG_CACHE_HOME=FOLDER in the environment"
            )
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
        try:
            notes = _write(draft, splits, image, mask, source)
            info = {"source": source.root, "classes": names_in(features[mask]), "notes": notes}
            (draft / INFO).write_text(json.dumps(info, indent=2), encoding="utf-8")
            with suppress(FileExistsError):  # another process was faster
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if not folder.exists():
            raise UserError(
                f"{source.root} can't be kept in {folder.parent}: {error.strerror}",
                advice="XDG_CACHE_HOME=FOLDER in the environment",
            ) from None
    return folder


def notes_of(folder: Path) -> tuple[str, ...]:
    """Return what the user is told about a data set that is kept."""
    return tuple(json.loads((folder / INFO).read_text(encoding="utf-8"))["notes"])


def check_names(folder: Path, classes: tuple[str, ...]) -> None:
    """Raise a UserError where the data set has more classes, by its own names, than the options."""
    names = json.loads((folder / INFO).read_text(encoding="utf-8"))["classes"]
    if names and len(names) != len(classes):
        raise UserError(
            f"the masks have {len(names)} classes, {', '.join(names)}, and data.classes names {len(classes)}",
            accepted="a name for each, or data.values, which says what the mask values mean",
            advice=f"'data.classes=[{','.join(names)}]'",
        )


def _write(folder: Path, splits: Mapping[str, Any], image: str, mask: str, source: Source) -> list[str]:
    """Write the pictures, masks and lists into a folder; return what the user is told."""
    known = {name: SPLIT_WORDS[name.lower()] for name in splits if name.lower() in SPLIT_WORDS}
    notes = [f"not used: the split {name}" for name in splits if name not in known]
    if not known:
        raise UserError(
            f"{source.root} has the splits {', '.join(splits)}", accepted="splits that are called train, val or test"
        )
    slugs: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for split, own in known.items():
        rows = _undecoded(splits[split], image, mask, source)
        without = 0
        for index, row in enumerate(
            track(rows, f"keeping {split}", total=len(splits[split]), transient=True, disable=not launch.is_first())
        ):
            if row[mask] is None:
                without += 1
                continue
            name = f"{split}_{index:06d}"
            if source.group:
                name = f"{_slug(str(row[source.group]), slugs)}_{name}"
            where = f"row {index} of {split} in {source.root}"
            (folder / "images" / f"{name}{_ending(row[image], where)}").write_bytes(_content(row[image], where))
            _write_mask(folder / "masks" / name, row[mask], where)
            lists.setdefault(own, []).append(name)
        if without:
            notes.append(f"left out, without a mask: {counted(without, 'picture')} of {split}")
    if len(lists) > 1:  # one alone says nothing: all are drawn from it
        for own, names in lists.items():
            (folder / LISTS[own]).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return notes


def _undecoded(rows: Any, image: str, mask: str, source: Source) -> Iterator[dict[str, Any]]:
    """Return the rows, with pictures as their bytes and of the columns that are used alone."""
    import datasets

    columns = list(dict.fromkeys(column for column in (image, mask, source.group) if column))
    absent = [column for column in columns if column not in rows.features]
    if absent:
        raise UserError(
            f"{source.root} has no column {', '.join(absent)}",
            accepted=", ".join(rows.features),
            advice="data.group=null",
        )
    rows = rows.select_columns(columns)
    for column in columns:
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return iter(rows)


def _content(picture: Any, where: str) -> bytes:
    """Return the bytes of a picture, which the library gives or the path of."""
    if picture and picture.get("bytes"):
        return picture["bytes"]
    if picture and picture.get("path") and Path(picture["path"]).is_file():
        return Path(picture["path"]).read_bytes()
    raise UserError(f"{where} holds no picture", accepted="pictures in the data set's files")


def _ending(picture: Any, where: str) -> str:
    """Return the ending of a picture's file by its content."""
    try:
        with Image.open(io.BytesIO(_content(picture, where))) as opened:
            return ENDINGS[str(opened.format)]
    except (OSError, KeyError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{where} holds no picture that can be read", accepted=", ".join(ENDINGS)) from None


def _write_mask(path: Path, mask: Any, where: str) -> None:
    """Write a mask: a picture as it is, rows of numbers as PNG or NPY."""
    if isinstance(mask, dict):
        path.with_name(f"{path.name}{_ending(mask, where)}").write_bytes(_content(mask, where))
        return
    try:
        values = np.asarray(mask)
    except ValueError:  # rows of several lengths
        values = np.zeros(0)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise UserError(f"the mask of {where} is no HxW table of whole numbers", accepted="one, or a picture")
    if values.min(initial=0) >= 0 and values.max(initial=0) <= 255:
        Image.fromarray(values.astype(np.uint8)).save(path.with_name(f"{path.name}.png"))
    else:
        np.save(path.with_name(f"{path.name}.npy"), values.astype(np.int32))


def _slug(group: str, slugs: dict[str, str]) -> str:
    """Return a name for a group that a file can have and GROUP finds; add it to `slugs`, no two alike."""
    if group not in slugs:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "-", group).strip(".-")[:60] or "group"
        numbered = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        taken = {*slugs.values()}
        slugs[group] = next(name for name in numbered if name not in taken)
    return slugs[group]
