"""`python -m unetseg.train` until its first training step: the step's start is the end.

python -m benchmarks.first_step FILE OVERRIDE ...      writes the time in seconds since the epoch to FILE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import unetseg.train as door


def main() -> None:
    """Run from the command line."""
    file = Path(sys.argv.pop(1))
    train = door.train

    def until_the_first_step(options: Any) -> dict[str, Any]:
        from unetseg.training.module import SegmentationModule

        def training_step(self: Any, batch: Any, batch_idx: int) -> None:
            file.write_text(str(time.time()))
            sys.exit(0)

        SegmentationModule.training_step = training_step  # type: ignore[method-assign]
        return train(options)

    door.train = until_the_first_step
    door.main()


if __name__ == "__main__":
    main()
