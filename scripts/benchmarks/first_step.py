"""`python -m unetseg.train` until its first training step: the step's start is the end.

python -m benchmarks.first_step FILE OVERRIDE ...      writes the time in seconds since the epoch to FILE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from unetseg import train as command


def main() -> None:
    """Run from the command line."""
    file = Path(sys.argv.pop(1))
    train = command.train

    def until_the_first_step(options: Any) -> dict[str, Any]:
        import lightning as L  # which train imports next itself

        class FirstStep(L.Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                file.write_text(str(time.time()))
                sys.exit(0)

        return train(options, callbacks=[FirstStep()])

    command.train = until_the_first_step
    command.main()


if __name__ == "__main__":
    main()
