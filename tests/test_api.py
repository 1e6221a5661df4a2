"""The commands called from Python, as in a notebook or a script."""

import importlib
import inspect
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, TINY

import unetseg
from unetseg.errors import Halt, UserError
from unetseg.options.call import interruptible, overrides_of

QUICK = [option for option in TINY if option != "data=synthetic"]


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """Return a function that trains for some seconds, by keywords and strings."""
    output = tmp_path_factory.mktemp("api")

    def train(*overrides, **options):
        return unetseg.train(*QUICK, f"data.root={drawn}", *overrides, data="synthetic", output=output, **options)

    train.output = output
    return train


@pytest.fixture(scope="module")
def run(trained):
    return trained("model.skip=none", "trainer.max_epochs=1", seed=3, name="one")


# The name `unetseg.train` is a module, and a function


def test_a_command_is_a_module_and_a_function_whatever_is_imported_first():
    code = (
        "import unetseg; first = unetseg.train; import unetseg.train; from unetseg import train; "
        "from unetseg.train import main, train as work; assert first is train is unetseg.train and callable(first); "
        "assert first.main is main; print(first.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "unetseg.train\n", done.stderr


@pytest.mark.parametrize("name", ["train", "evaluate", "ablate", "report"])
def test_a_command_can_be_pickled_reloaded_and_asked_for_its_signature(name):
    command = getattr(unetseg, name)
    assert pickle.loads(pickle.dumps(command)) is command
    assert "overrides" in inspect.signature(command).parameters
    assert importlib.reload(command) is command
    assert callable(command)
    assert "Examples:" in command.call.__doc__


def test_all_that_is_promised_is_there():
    for name in unetseg.__all__:
        assert getattr(unetseg, name) is not None
        assert name in dir(unetseg)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = unetseg.trian


def test_the_package_is_typed():
    assert (ROOT / "unetseg/py.typed").is_file()


# Options


def test_keywords_are_the_options_of_the_command_line():
    given = {"seed": 3, "output": "my runs", "name": None, "compile": True, "allow_changes": ["optimizer.lr"]}
    words = overrides_of(["model.skip=none"], {"data": "synthetic", **given}, "")
    assert words[:3] == ["model.skip=none", "data=synthetic", "seed=3"]
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train

    options = compose("train", Train, words).model_dump()
    assert {key: options[key] for key in given} == given


@pytest.mark.parametrize(
    "name",
    ["1e3", "true", "null", "a,b", "läufe", "it's", "${oc.env:HOME}", r"a\b", r"\${x}\\", 'a "b"', "~nobody-here"],
)
def test_a_text_stays_what_it_is(name):
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train

    assert compose("train", Train, overrides_of([], {"data": "synthetic", "name": name}, "")).name == name


@pytest.mark.parametrize("value", [True, 3.0, "3"])
def test_a_seed_is_a_whole_number(value):
    with pytest.raises(UserError, match=r"seed=.* is not accepted\n  accepted: a whole number, not "):
        unetseg.train(data="synthetic", seed=value)


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    assert overrides_of([], {"seed": np.arange(3)[2], "plan": np.float32(0.5)}, "") == ["seed=2", "plan=0.5"]


WRONG = [
    ((), {"skip": "none"}, "skip is not an option", "try: model.skip=none"),
    ((), {"seed": "x"}, "seed=x is not accepted", "try: python -m unetseg.train --help"),
    ((), {"data": None}, "data=null is not accepted", "try: data=folder"),
    ((), {"epochs": 3}, "epochs is not an option", "try: trainer.max_epochs=3"),
    (("runs/NAME",), {}, "'runs/NAME' is not an option", 'try: "data=synthetic"'),
    (("--help",), {}, "'--help' is not an option", "as on the command line"),
    ((), {"model": {"skip": "none"}}, "model={'skip': 'none'} is not accepted", 'try: "model.skip=...'),
    (("model.skip=bogus",), {}, "model.skip=bogus is not accepted", "try: model.skip="),
    (("trainer.devices=2",), {}, "trainer.devices=2", "unetseg.ablate"),
    (("seed=0,1",), {}, "seed=0,1 may be the values of several runs", "ablate"),
]


@pytest.mark.parametrize(("strings", "keywords", "problem", "advice"), WRONG, ids=[case[2] for case in WRONG])
def test_a_wrong_option_is_an_error_that_says_what_to_try(strings, keywords, problem, advice):
    with pytest.raises(UserError) as caught:
        unetseg.train(*strings, **{"data": "synthetic", **keywords})
    assert str(caught.value).startswith(problem)
    assert advice in str(caught.value)


# Results


def test_a_run_has_what_its_folder_holds(run):
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    assert run.config["model"]["skip"] == "none"
    assert run.config["seed"] == 3
    assert list(run.metrics.columns) == ["step", "epoch", "name", "value"]
    assert run.per_image.iou.mean() == pytest.approx(run.summary["test/iou_per_image"], abs=1e-12)
    assert {"skip", "exit"} & {*run.gradient_flow.kind} or run.gradient_flow.empty
    assert run.figures["predictions"] == run.folder / "figures/predictions.png"
    assert not run.model().training
    assert repr(unetseg.Run(run.folder)) == repr(run)
    assert "skip none" in repr(run)


def test_a_notebook_shows_a_run_as_a_table_and_a_picture(run):
    page = run._repr_html_()
    assert f"<td>{run.summary['test/iou']:.4f}</td>" in page
    assert "data:image/jpeg;base64," in page


def test_the_recorded_command_repeats_the_run_in_a_shell(run):
    assert run.summary["command"].startswith("python -m unetseg.train data.size=64 ")
    assert "model.skip=none trainer.max_epochs=1 data=synthetic" in run.summary["command"]


def test_a_folder_of_something_else_is_no_run(run):
    with pytest.raises(UserError, match="is not a run folder") as caught:
        unetseg.Run(run.folder.parent)
    assert str(run.folder) in str(caught.value), "runs that lie in it are named"


def test_a_damaged_summary_is_named(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    assert unetseg.Run(tmp_path).summary == {}
    assert "not finished" in repr(unetseg.Run(tmp_path))
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(UserError, match=r"summary\.json can't be read"):
        _ = unetseg.Run(tmp_path).summary


def test_runs_of_one_name_in_two_folders_are_two_rows(run, tmp_path):
    for place in ("x/a", "y/a"):
        shutil.copytree(run.folder, tmp_path / place)
    assert list(unetseg.Sweep(tmp_path).table.index) == ["x/a", "y/a"]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [("summary.json", "test/iou", value) for value in (None, "high", True, 2.0)]
    + [("config.yaml", "seed", "x"), ("config.yaml", "model", {"skip": None})],
)
def test_a_run_of_other_kinds_of_values_is_damaged(file, key, value, run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "a")
    path = tmp_path / "a" / file
    content = yaml.safe_load(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    sweep = unetseg.Sweep(tmp_path)
    assert list(sweep.damaged) == ["a"]
    assert repr(sweep)


def test_a_damaged_run_of_a_sweep_is_named_and_the_others_are_shown(run, tmp_path):
    for name in ("whole", "damaged"):
        shutil.copytree(run.folder, tmp_path / name)
    (tmp_path / "damaged/summary.json").write_text("{")
    sweep = unetseg.Sweep(tmp_path)
    with pytest.warns(UserWarning, match=r"left out, damaged: .*damaged/summary\.json can't be read"):
        assert list(sweep.table.index) == ["whole"]
    assert [one.folder.name for one in sweep.runs] == ["whole"]
    assert list(sweep.damaged) == ["damaged"]
    assert "1 run, 1 damaged" in repr(sweep)
    assert "summary.json can&#x27;t be read" in sweep._repr_html_()


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(run, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("HOME", str(run.folder.parent))
    place = f"~/{run.folder.name}"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(run.folder.parent / "picture.png")
    assert unetseg.load(place)("~/picture.png").shape == (40, 60)
    assert unetseg.Run(place).folder == run.folder
    assert overrides_of([], {"checkpoint": place}, "") == overrides_of([], {"checkpoint": run.folder}, "")
    unetseg.save_pretrained(place, "~/hub")
    assert (run.folder.parent / "hub/config.json").is_file()
    with pytest.raises(UserError, match=r"~nobody-here is not a run folder"):
        unetseg.Run("~nobody-here")


def test_an_unfinished_run_has_tables_without_rows(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    stopped = unetseg.Run(tmp_path)
    for name in ("per_image", "metrics", "gradient_flow"):
        assert getattr(stopped, name).empty
    assert set(stopped.per_image.columns) <= set(run.per_image.columns)
    assert stopped.per_image.index.name == run.per_image.index.name == "name"


@pytest.mark.parametrize("name", ["per_image", "metrics", "gradient_flow"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_a_damaged_table_is_named(name, content, run, tmp_path):
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    (tmp_path / f"{name}.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.csv can't be read"):
        getattr(unetseg.Run(tmp_path), name)


@pytest.mark.parametrize("content", ["a: 1", "model: 3", "model: {skip: concat}"])
def test_a_configuration_of_something_else_is_named(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml is not that of a training"):
        unetseg.Run(tmp_path).facts()


def test_a_damaged_figure_is_left_out(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/predictions.png").write_bytes(b"no picture")
    assert "<img" not in unetseg.Run(tmp_path)._repr_html_()


def test_a_run_stands_for_its_folder(run):
    assert overrides_of([], {"checkpoint": run}, "") == overrides_of([], {"checkpoint": run.folder}, "")
    sweep = unetseg.Sweep(run.folder.parent)
    assert overrides_of([], {"runs": sweep}, "") == overrides_of([], {"runs": sweep.folder}, "")


def test_bytes_are_no_text():
    with pytest.raises(UserError, match="name=b'a' is not accepted"):
        overrides_of([], {"name": b"a"}, "")


def test_a_sweep_is_a_folder_that_is_there(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        unetseg.Sweep(tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert unetseg.Sweep("~").folder == tmp_path
    assert unetseg.Sweep("~").table.empty


def test_names_are_no_html(run, tmp_path):
    import shutil

    folder = tmp_path / "<b>bold"
    shutil.copytree(run.folder, folder)
    assert "<b>" not in unetseg.Run(folder)._repr_html_()
    assert "<b>" not in unetseg.Sweep(tmp_path)._repr_html_()


def test_a_second_training_in_the_process_is_the_run_it_would_be_alone(trained):
    first, second = (trained("trainer.max_epochs=1", name=name) for name in ("first", "second"))
    assert first.folder != second.folder
    assert first.metrics.equals(second.metrics)


def process_state():
    import logging
    import random
    import warnings

    import cv2
    import matplotlib
    import numpy as np
    import torch

    return {
        "environment": dict(os.environ),
        "random numbers": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),  # noqa: NPY002
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "warnings": list(warnings.filters),
        "log": logging.getLogger("lightning.pytorch").level,
        "threads": cv2.getNumThreads(),
        "figures": matplotlib.get_backend(auto_select=False),
        "output": (sys.stdout, sys.stderr, sys.excepthook),
    }


def test_the_process_is_left_as_it_was(trained, run):
    import logging

    import cv2

    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    cv2.setNumThreads(2)
    os.environ.pop("PL_GLOBAL_SEED", None)
    before = process_state()
    trained("trainer.max_epochs=1", name="guest")
    assert process_state() == before
    unetseg.evaluate(checkpoint=run.folder, accelerator="cpu")
    assert process_state() == before


def test_evaluate_gives_the_scores_of_the_split(run):
    evaluation = unetseg.evaluate(checkpoint=run.folder, split="val", accelerator="cpu")
    assert evaluation.folder.parent == run.folder / "evaluation"
    assert len(evaluation.per_image) == evaluation.summary["test/images"]
    assert evaluation.lesion.empty
    assert evaluation.freeu.empty
    assert "IoU" in repr(evaluation)


def test_report_gives_the_path_of_its_page(run, tmp_path):
    assert unetseg.report(runs=run.folder, output=tmp_path / "page") == tmp_path / "page/report.html"


def test_ablate_gives_the_runs_of_a_sweep(drawn, tmp_path):
    sweep = unetseg.ablate(
        *QUICK, f"data.root={drawn}", "trainer.max_epochs=1", "model.skip=concat,none",
        data="synthetic", output=tmp_path, name="two",
    )  # fmt: skip
    assert [run.config["model"]["skip"] for run in sweep.runs] == ["concat", "none"]
    assert list(sweep.table.index) == ["concat_seed0", "none_seed0"]
    assert list(sweep.table.setting) == ["concat", "none"]
    assert "<table" in sweep._repr_html_()
    record = json.loads((tmp_path / "two/sweep.json").read_text())
    assert record["command"].startswith("python -m unetseg.ablate ")


# Interruptions


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_an_interrupted_training_is_a_keyboard_interrupt_and_can_be_resumed(trained, times):
    from lightning.pytorch.callbacks import Callback

    class Interrupting(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 7:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    name = f"stopped{times}"
    with pytest.raises(KeyboardInterrupt) as caught:
        trained(name=name, callbacks=[Interrupting()])
    assert signal.getsignal(signal.SIGINT) is before
    if times == 2:
        assert "at once" in str(caught.value)
        return
    assert "stopped after step 7" in str(caught.value)
    stopped = unetseg.Run(trained.output / name)
    assert stopped.summary == {}
    resumed = unetseg.train(resume=stopped.folder)
    assert resumed.metrics.equals(trained(name="whole").metrics)


def test_an_interrupted_test_is_a_keyboard_interrupt_and_no_exit():
    def as_lightning_does():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.exit(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible("evaluate", []):
        as_lightning_does()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_cannot_go_on_says_why():
    with pytest.raises(Halt, match="no room"), interruptible("train", []):
        raise Halt("no room")
