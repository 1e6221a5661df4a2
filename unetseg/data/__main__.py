"""Look at a folder of pictures and masks before training on it.

python -m unetseg.data FOLDER                   what is there; writes FOLDER/data.yaml where there is none
python -m unetseg.data FOLDER data.threshold=0  with other options of data=folder than data.yaml has
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from pathlib import Path

from unetseg.errors import UserError
from unetseg.files import write_text
from unetseg.options import data_file
from unetseg.options.command import exit_on_error, protect_output
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.options.settings import override

SAMPLES = 12
"""Pictures on the page."""
DOUBTS = {
    "threshold": "values above it are class 1: right for edges in greys (127), and for objects with numbers (0)",
    "classes": "names of the values 0, 1, ...; where each value is an object of one class: threshold: 0 instead",
    "values": "names of the classes and the values or colours of each; those under `ignore` don't count",
}
"""What may be wrong in a guess."""


def look(root: Path, overrides: list[str]) -> Path:
    """Print what a folder holds, write a data.yaml where it has none, and return a page of samples.

    Raises:
        UserError: the folder isn't one, or can't be trained on as the data.yaml says.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder", accepted="a folder of pictures and masks")
    file = root / data_file.NAME
    if not file.exists():
        from unetseg.data.guess import guess

        stated = {}
        try:
            stated = guess(root)
        except UserError:
            if not ((root / "images").is_dir() and (root / "masks").is_dir()):  # which need no statement
                raise
        if stated:
            text = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in stated.items())
            doubts = "".join(f"# {key}: {DOUBTS[key]}\n" for key in stated if key in DOUBTS)
            write_text(file, f"# A guess of python -m unetseg.data: read and mend it.\n{text}{doubts}")
            print(f"{file} is written:\n{text}{doubts}")
    from unetseg.data.samples import sheet
    from unetseg.data.sources import make_data

    place = override("data.root", str(root))
    options = compose("train", Train, ["data=folder", place, "data.workers=0", *overrides])
    data = make_data(options.data.model_dump(), options.seed)
    data.check()
    assert data.collection is not None
    name = f"{root.resolve().name}_samples"
    names = (f"{name}.png" if number == 1 else f"{name}_{number}.png" for number in itertools.count(1))
    page = next(path for path in map(Path, names) if not path.exists())
    sheet(data.collection, SAMPLES, data.view, page)
    return page


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    protect_output()
    with exit_on_error("unetseg.data"):
        root = Path(sys.argv[1]).expanduser()
        page = look(root, sys.argv[2:])
        print(f"next: look at {page}: do the masks lie on their pictures?")
        print(f"      python -m unetseg.train data=folder data.root={shlex.quote(str(root))}")


if __name__ == "__main__":
    main()
