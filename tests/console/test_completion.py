"""Completion as one types: commands, options, values and paths, in bash and zsh."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest
from conftest import HANG

from unetseg.console.completion import main, script
from unetseg.console.main import COMMANDS, OWN
from unetseg.errors import UserError
from unetseg.names import SKIPS
from unetseg.options.choices import choices
from unetseg.options.compose import compose
from unetseg.options.data_schema import Folder, HuggingFace, Synthetic
from unetseg.options.schema import Train

NAMES = [*COMMANDS, *OWN]
TYPED = [
    ("unetseg tr", {"train"}),
    ("unetseg train model.skip", {"model.skip=", "model.skip_flow=", "model.skip_gradient=", "model.skip_scale="}),
    ("unetseg train model.skip=", {*SKIPS}),
    ("unetseg train seed=3 model.skip_flow=b", {"both", "backward"}),
    ("unetseg train data=", {"folder", "hf", "own", "pets", "synthetic"}),
    ("unetseg train compile=", {"true", "false"}),
    ("unetseg ablate experiment=sk", {"skip_ablation"}),
    ("unetseg evaluate split=", {"train", "val", "test", "all"}),
    ("unetseg train trainer.max_ep", {"trainer.max_epochs="}),
    ("unetseg train --h", {"--help"}),
    ("unetseg completion ", {"bash", "zsh"}),
    ("unetseg he", {"help"}),
    ("unetseg help ev", {"evaluate"}),
    ("unetseg predict images=ph", {"photos"}),
    ("unetseg report seed=", set()),
]


def accepted(option: str) -> bool:
    """Return whether a training takes an option, or lacks the folder that this one needs alone."""
    key = option.partition("=")[0]
    of_folder = key.removeprefix("data.") in Folder.model_fields.keys() - Synthetic.model_fields.keys()
    of_hub = key.removeprefix("data.") in HuggingFace.model_fields.keys() - Folder.model_fields.keys()
    kind = "folder" if of_folder else "hf" if of_hub else ""
    data = [f"data={kind}", "data.root=.", "data.classes=[a,b]"] if kind else ["data=synthetic"]
    data = [] if key == "data" else data
    weights = "hf:me/encoder" if key == "model.strict_weights" else "null"  # it does nothing without a file
    others = ["data.target=pet", f"model.weights={weights}"] if "data" not in key and key != "model.weights" else []
    others += ["model.short_skips=false"] if option == "model.initialisation=looks_linear" else []
    others += ["loss=bce"] if key == "class_weights" else []  # which do nothing to the Dice of two classes
    try:
        compose("train", Train, [*data, *others, option])
    except UserError as error:
        return any(text in str(error) for text in ("does not exist", "data.root is not", "data.source is not"))
    return True


def test_every_value_that_is_offered_for_a_training_is_accepted():
    offered = [f"{key}={value}" for key, values in choices("train").items() for value in values]
    assert len(offered) > 80
    assert [option for option in offered if not accepted(option)] == []


def test_every_option_of_the_schema_is_offered():
    from unetseg.options.validation import known_options

    ours = {"sweep", "data.name"}
    assert set(known_options(Train)) - ours == choices("train").keys() - {"data", "trainer", "experiment"}


@pytest.mark.parametrize(("line", "expected"), TYPED, ids=[line for line, _ in TYPED])
def test_bash_completes(line, expected, tmp_path):
    (tmp_path / "photos").mkdir()
    breaks = re.sub("=", " = ", line).split(" ")  # as bash splits the line at "="
    words = " ".join(f"'{word}'" for word in breaks)
    call = f"""{script("bash", NAMES)}
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({words}) COMP_CWORD={len(breaks) - 1}
_unetseg; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, cwd=tmp_path)
    assert set(done.stdout.split()) == expected, done.stderr


def typed(command: list[str], setup: str, keys: str, folder, whole: str) -> str:
    """Return what a shell shows after keys were typed into its terminal, once it shows the whole line."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "dumb", "PS1": "$ ", "HOME": str(folder)}
        os.execvp(command[0], command)
    shown = ""

    def seen() -> str:
        return re.sub(".\b|\a", "", shown.rpartition("ready")[2])

    try:
        for text, awaited in ((setup + "\necho rea''dy\n", "ready\r\n"), (keys, whole)):
            os.write(terminal, text.encode())
            end = time.monotonic() + HANG
            while awaited not in shown and awaited not in seen() and time.monotonic() < end:
                if select.select([terminal], [], [], 1)[0]:
                    shown += os.read(terminal, 4096).decode(errors="replace")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)
    return seen()


@pytest.mark.parametrize(
    ("shell", "begin"), [("bash", []), ("zsh", ["autoload -Uz compinit && compinit -u -D"])], ids=["bash", "zsh"]
)
def test_a_shell_in_a_terminal_completes(shell, begin, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "completion").write_text(script(shell, NAMES))
    command = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    setup = "\n".join([*begin, f". {tmp_path}/completion"])
    whole = "unetseg train model.encoder=resnet34 model.skip_flow=forward "
    shown = typed(command, setup, "unetseg tra\tmodel.enc\tresnet3\tmodel.skip_f\tforw\t", tmp_path, whole)
    assert whole in shown, repr(shown)


def test_a_shell_without_a_script_is_refused(capsys):
    assert main(["fish"], NAMES) == 2
    assert "accepted: bash, zsh" in capsys.readouterr().err
