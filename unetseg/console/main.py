"""The command `unetseg`: `unetseg train ...` is `python -m unetseg.train ...`, and so on."""

from __future__ import annotations

import runpy
import sys

import unetseg
from unetseg import launch
from unetseg.names import nearest_first, shown

COMMANDS = {
    "train": "train and test a U-Net with the long skips of your choice",
    "ablate": "a sweep: each run in a process of its own, resumable",
    "evaluate": "score a checkpoint: each group and image, what each skip contributes",
    "report": "one HTML page on the runs of a folder, with honest statistics",
    "predict": "masks for a folder of pictures",
    "demo": "a local page: drop a picture, switch long skips off",
    "export": "a checkpoint as ONNX or .pt2",
}
"""What each command is for; its module has its name."""
OWN = {
    "data": "look at a folder of pictures and masks, and write a data.yaml: unetseg data FOLDER",
    "help": "the same as COMMAND --help: unetseg help COMMAND",
    "doctor": "versions, devices, caches, network and disk, and what is missing",
    "completion": "completion for a shell: unetseg completion bash|zsh",
}


def main() -> None:
    """Run the command that the first argument names; without one say what there is."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "help" and arguments:
        name, *arguments = arguments[0], "--help"
    if name in (*COMMANDS, "data"):
        sys.argv[1:] = arguments
        with launch.recorded_as(["python", "-m", f"unetseg.{name}", *arguments]):
            # as `python -m` does, so that Lightning starts the processes for further devices by the module's name
            runpy.run_module(f"unetseg.{name}", run_name="__main__", alter_sys=True)
    elif name == "doctor":
        from unetseg.console import doctor

        sys.exit(doctor.main(arguments))
    elif name == "completion":
        from unetseg.console import completion

        sys.exit(completion.main(arguments, [*COMMANDS, *OWN]))
    elif name in ("-h", "--help", "help"):
        print(overview())
    elif name in ("-V", "--version"):
        print(f"unetseg {unetseg.__version__}")
    else:
        nearest = nearest_first(name, [*COMMANDS, *OWN])
        print(
            f"unetseg: {shown(name)} is not a command\n  accepted: {', '.join(nearest)}\n  try: unetseg {nearest[0]}",
            file=sys.stderr,
        )
        sys.exit(2)


def overview() -> str:
    """Return what there is: the commands, with a first example."""
    lines = [
        "U-Nets whose long skip connections can be switched, measured and explained.",
        "",
        "  unetseg train data=synthetic model.skip=none     a first training: no download, a few minutes",
        "  unetseg train --help                             the options of a command",
        "",
        "usage: unetseg COMMAND [OPTION=VALUE ...]",
        "",
        *(f"  {name:12} {text}" for name, text in (COMMANDS | OWN).items()),
    ]
    return "\n".join(lines)
