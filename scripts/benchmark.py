"""Measure what this package costs, side by side with its alternatives, interleaved in one run.

python scripts/benchmark.py train --json FILE.json --output FILE.md      the same for every measurement below
python scripts/benchmark.py train --help                                 its options

train      images/s of the limit (bare steps on a resident batch), of ours with its defaults, and of smp's recipe
data       images/s of the loader alone, held against decoding alone
gradients  a training step with our gradient flow read in it, and with wandb.watch
metrics    what counting a batch's pixels for all metrics takes
augment    images/s of the augmentation in three libraries, and whether their masks follow
predict    pictures' classes by smp.Unet and its ONNX export, and by our predictor in torch, ONNX, OpenVINO and int8
int8       what int8 costs a trained model in IoU
pinned     inference with threads that are bound to processors, and with threads that may move
startup    seconds to the first training step, to the help text and to the message about a wrong option
growth     how the cost of training grows with images, pixels and epochs
roofline   how much of the machine's arithmetic and memory rate a step uses, and each block of the net
ways       bare steps in other ways: memory layout, optimizer, recomputing, compiled
held       bare steps with freed memory held, and as glibc has it
memory     whether the memory of a training grows with its steps
scale      a data set of a million pictures, a sweep of ten thousand runs, a report of two hundred

Every round has each alternative once, and what counts is the ratio within a round. Measurements that share a --json
FILE end up in it together, each with other options beside the others, and --output is all of it as Markdown:
docs/benchmarks/MACHINE.md. Without --json, it is the one measurement. A FILE.md that wasn't drawn from FILE.json is
not replaced.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commandline import may_write, whole, without

CHECKOUT = Path(__file__).resolve().parent.parent

OPTIONS: dict[str, dict[str, Any]] = {
    "encoder": {"default": "resnet34", "help": "ResNet or DenseNet of smp"},
    "size": {"default": 256, "type": whole(32, 32), "help": "side of the pictures in pixels"},
    "batch_size": {"default": 16, "type": whole(1), "help": "pictures of a step"},
    "steps": {
        "default": 26,
        "type": whole(2),
        "help": "training steps of an epoch; with 26, one of the 25 that count has a reading",
    },
    "epochs": {"default": 1, "type": whole(1), "help": "epochs of a training"},
    "crop": {
        "default": 0,
        "type": whole(0, 32),
        "help": "side of crops of the pictures, in place of squares of --size; 0: none",
    },
    "workers": {"default": 2, "type": whole(0), "help": "loader processes"},
    "cache": {
        "default": "auto",
        "choices": ("auto", "none", "ram", "disk", "device"),
        "help": "data.cache of ours",
    },
    "rounds": {"default": 8, "type": whole(1), "help": "rounds in which all alternatives take turns"},
    "pets": {"default": CHECKOUT.parent / "shared/pets", "type": Path, "help": "Oxford-IIIT Pet in its own layout"},
    "pictures": {"default": 1_000_000, "type": whole(100), "help": "pictures of a data set"},
    "cells": {"default": 10_000, "type": whole(1), "help": "runs of a sweep"},
    "runs": {"default": 200, "type": whole(1), "help": "runs of a report"},
    "checkpoint": {"default": [], "type": Path, "nargs": "+", "help": "runs of one setting, of several seeds"},
    "large": {
        "default": (3000, 4000),
        "type": whole(1),
        "nargs": 2,
        "metavar": ("HEIGHT", "WIDTH"),
        "help": "large picture",
    },
}
"""Every option of a measurement, and its default where MEASUREMENTS has no other."""

MEASUREMENTS: dict[str, dict[str, Any]] = {
    "train": {"pets": ..., "encoder": ..., "size": ..., "batch_size": ..., "steps": ..., "epochs": ..., "workers": ...,
              "cache": ..., "rounds": 3, "crop": ...},
    "data": {"pets": ..., "size": ..., "batch_size": ..., "steps": ..., "rounds": 5},
    "gradients": {"encoder": ..., "size": ..., "batch_size": ..., "rounds": ...},
    "metrics": {"encoder": ..., "size": ..., "batch_size": ..., "rounds": ...},
    "augment": {"rounds": ...},
    "predict": {"encoder": ..., "size": ..., "large": ..., "rounds": ...},
    "int8": {"checkpoint": ...},
    "pinned": {"encoder": ..., "size": ..., "rounds": ...},
    "startup": {"pets": ..., "encoder": ..., "size": ..., "batch_size": ..., "rounds": 5},
    "growth": {"pets": ..., "encoder": ..., "size": ..., "batch_size": ..., "steps": 8, "epochs": 2, "workers": ...,
               "rounds": 2},
    "roofline": {"pets": ..., "encoder": ..., "size": ..., "batch_size": ..., "steps": ..., "workers": ...,
                 "cache": ..., "rounds": 3},
    "ways": {"encoder": ..., "size": ..., "batch_size": ..., "steps": 4, "rounds": 5},
    "held": {"encoder": ..., "size": ..., "batch_size": ..., "steps": 8, "rounds": 3},
    "memory": {"pets": ..., "encoder": ..., "size": 32, "batch_size": 2, "steps": 2000, "workers": ..., "rounds": 2},
    "scale": {"pictures": ..., "cells": ..., "runs": ..., "rounds": 2},
}  # fmt: skip
"""The options of each measurement; ... is the default of OPTIONS."""

LEAST: dict[str, dict[str, Callable[[str], int]]] = {
    "growth": {"size": whole(64, 64), "epochs": whole(2)},  # it takes half of each, too
    "memory": {"steps": whole(400)},
}
"""The numbers that a measurement accepts, where they are others than in OPTIONS."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    about: Any = argparse.RawDescriptionHelpFormatter
    main_parser = argparse.ArgumentParser(description=__doc__, formatter_class=about, allow_abbrev=False)
    commands = main_parser.add_subparsers(dest="what", required=True, metavar="MEASUREMENT")
    for what, options in MEASUREMENTS.items():
        about = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(what, help="see above", formatter_class=about, allow_abbrev=False)
        for name, default in options.items():
            given = OPTIONS[name] if default is ... else {**OPTIONS[name], "default": default}
            own = {"type": LEAST[what][name]} if name in LEAST.get(what, {}) else {}
            command.add_argument(f"--{name.replace('_', '-')}", **{"type": type(given["default"]), **given, **own})
        command.add_argument("--json", type=Path, metavar="FILE.json", help="file that the numbers are added to")
        command.add_argument("--output", type=Path, metavar="FILE.md", help="file for all of --json as Markdown")
    return main_parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = vars(parser().parse_args(given))
    what, json, output = (arguments.pop(name) for name in ("what", "json", "output"))
    if arguments.get("checkpoint") == []:
        parser().error("int8 needs --checkpoint RUN [RUN ...]")
    if json and output and json.resolve() == output.resolve():
        parser().error("--json and --output are one file")
    os.environ |= {"WANDB_SILENT": "true", "NO_ALBUMENTATIONS_UPDATE": "1"}
    from unetseg.options.command import exit_on_error

    with exit_on_error("benchmark.py"):
        # what is wrong shows now, not after the measurement
        for path in (json, output):
            if path:
                may_write(path)
        from benchmarks import pictures, report  # torch takes seconds; a wrong option and --help don't wait for it

        before = report.kept(json)
        if output:
            report.check_drawn(output, before)
        if "pets" in arguments:
            pictures.official_layout(arguments["pets"])
        if "encoder" in arguments:
            from unetseg.model.encoders import make_encoder

            make_encoder(arguments["encoder"], in_channels=3, weights=None)
        result = importlib.import_module(f"benchmarks.{what}").measure(**arguments)
        name = shlex.join(without(given, "--json", "--output", "--pets"))
        found = report.entry(result, f"python scripts/benchmark.py {name}")
        before = report.kept(json)  # another measurement may have been added meanwhile
        entries = before | {name: found}
        if json:
            report.write(entries, json)
        print(report.markdown({name: found}))
        if output:
            report.check_drawn(output, before)
            output.write_text(report.markdown(entries))


if __name__ == "__main__":
    main()
