"""Oxford-IIIT Pet (Parkhi et al. 2012), and every set in its layout:

images/NAME.jpg    annotations/trimaps/NAME.png (1 pet, 2 background, 3 boundary)
annotations/trainval.txt, test.txt: NAME CLASS-ID SPECIES BREED-ID
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unetseg.data.dataset import Collection, Example, missing_layout, read_list
from unetseg.data.masks import INVALID, MaskValues
from unetseg.errors import UserError, first_line
from unetseg.names import IGNORE, PETS_ROOT

ADVICE = (
    f"copy the set's images/ and annotations/ into {PETS_ROOT}/",
    "data.root=FOLDER that holds images/ and annotations/",
    "the same command with data=synthetic, which needs no download",
)
"""What a user can do who has neither the data set nor a network."""
LAYOUT = ("images", "annotations/trimaps", "annotations/trainval.txt", "annotations/test.txt")


def download() -> Path:
    """Fetch the official archives by torchvision (checksums, progress bar) unless they are there; return the root."""
    if missing_layout(PETS_ROOT, LAYOUT):
        from torchvision.datasets import OxfordIIITPet  # seconds to import, and needed once

        try:
            OxfordIIITPet(str(PETS_ROOT.parent), target_types="segmentation", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"Oxford-IIIT Pet could not be downloaded: {first_line(error)}", advice=ADVICE) from None
    return PETS_ROOT


def load(
    root: Path, *, classes: Sequence[str], target: str, border: str, validation: str | float, seed: int
) -> Collection:
    """Return the examples of a set in the Pets layout.

    Validation is every 10th line of trainval, as in smp's example, or a share of each breed drawn with `seed`.

    Args:
        root: folder that holds images/ and annotations/.
        classes: names of the classes.
        target: "pet" (two classes) or "trimap" (three).
        border: with "pet", what trimap value 3 counts as: "pet", "background" or "ignore".
        validation: "every_10th" line, or a share in 0..0.5.
        seed: of the drawn validation share.
    """
    missing = missing_layout(root, LAYOUT)
    if missing:
        raise UserError(f"data.root={root} lacks {', '.join(missing)}", advice=ADVICE)
    trainval, test = (_examples(root, root / "annotations" / f"{split}.txt") for split in ("trainval", "test"))
    if isinstance(validation, str):
        held_out = set(range(0, len(trainval), 10))
    else:
        held_out = _stratified_indices(trainval, validation, seed)
    return Collection(
        classes=tuple(classes),
        values=mask_values(target, border),
        splits={
            "train": [example for i, example in enumerate(trainval) if i not in held_out],
            "val": [trainval[i] for i in sorted(held_out)],
            "test": test,
        },
    )


def mask_values(target: str, border: str) -> MaskValues:
    """Return the class of each trimap value."""
    table = np.full(256, INVALID, dtype=np.uint8)
    table[[1, 2]] = 1, 0
    table[3] = 2 if target == "trimap" else {"pet": 1, "background": 0, "ignore": IGNORE}[border]
    return MaskValues(table)


def _examples(root: Path, split: Path) -> list[Example]:
    names = [line.split()[0] for line in read_list(split) if not line.startswith("#")]
    if not names:
        raise UserError(f"{split} lists no picture", accepted="lines of NAME CLASS-ID SPECIES BREED-ID")
    return [
        Example(
            name=name,
            image=root / "images" / f"{name}.jpg",
            mask=root / "annotations/trimaps" / f"{name}.png",
            group=name.rpartition("_")[0],
        )
        for name in names
    ]


def _stratified_indices(examples: list[Example], share: float, seed: int) -> set[int]:
    """Return the indices of a share of every group, the same for the same seed; at least one index in all."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.group, []).append(index)
    # each size is rounded up or down at random, so that small groups keep the share on average
    held_out = {
        int(index)
        for _, members in sorted(groups.items())
        for index in rng.permutation(members)[: int(len(members) * share + rng.random())]
    }
    return held_out or {int(rng.integers(len(examples)))}
