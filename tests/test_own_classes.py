"""Classes of the user's own in the place of built-in ones; what a file names is not imported unless it is trusted."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, TINY, forked
from fake_engine import save_untrained

import unetseg
from unetseg import classes, export
from unetseg.data.sources import find, make_data
from unetseg.errors import UserError
from unetseg.gradients import blocks_of
from unetseg.model import Segmenter, SkipUnet
from unetseg.model.transfer import load_weights
from unetseg.options.compose import as_override, compose, compose_runs, runs_of
from unetseg.options.schema import Train
from unetseg.options.settings import run_name
from unetseg.runs.folder import RunFolder
from unetseg.training import build, preflight
from unetseg.training.resume import command_to_resume

OWN = [ROOT / "tests/own/my_skips.py", ROOT / "tests/own/my_parts.py"]
GATED = "model.skip={class: my_skips:Gated, reduction: 2}"


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with my_skips.py, where the command runs, and a process that has not imported it."""
    for file in OWN:
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    forget(tmp_path)
    yield tmp_path
    forget(tmp_path)


def was_imported(desk: Path) -> bool:
    return (desk / "imported").exists()


def forget(desk: Path) -> None:
    """Put the process back into the state in which the modules have never been imported."""
    for name in ("my_skips", "my_parts"):
        sys.modules.pop(name, None)
    (desk / "imported").unlink(missing_ok=True)


def options(*overrides: str) -> Train:
    return compose("train", Train, [*TINY, "model.encoder=resnet18", "model.weights=null", *overrides])


# Names


def test_a_table_and_a_text_are_the_same_class():
    assert options(GATED).model.skip == options("model.skip='my_skips:Gated(reduction=2)'").model.skip
    assert options(GATED).model.skip == "my_skips:Gated(reduction=2)"


def test_a_class_may_stand_at_one_level_and_on_an_axis_of_a_sweep():
    skip = "model.skip=[none,my_skips:Maximum,{class: my_skips:Gated, reduction: 2},concat]"
    assert options(skip).model.skip == ["none", "my_skips:Maximum", "my_skips:Gated(reduction=2)", "concat"]
    runs = runs_of([*TINY, "model.skip=concat,my_skips:Maximum,{class: my_skips:Gated, reduction: 2}"])
    kinds = [own.model.skip for own in compose_runs("train", Train, runs)]
    assert kinds == ["concat", "my_skips:Maximum", "my_skips:Gated(reduction=2)"]


def test_the_text_of_a_class_with_arguments_needs_no_quotes_in_a_list_or_on_an_axis():
    skip = "model.skip=[none,my_skips:Maximum,my_skips:Gated(reduction=2),concat]"
    assert options(skip).model.skip == ["none", "my_skips:Maximum", "my_skips:Gated(reduction=2)", "concat"]
    axis = [override for override in map(as_override, [*TINY, "model.skip=concat,my_skips:Gated(reduction=2)"])]
    kinds = [own.model.skip for own in compose_runs("train", Train, runs_of(axis))]
    assert kinds == ["concat", "my_skips:Gated(reduction=2)"]


@pytest.mark.parametrize(
    "arguments",
    [{"a": 1, "b": 0.5, "c": None, "d": True}, {"names": ["x", "it's"], "table": {"k": [1, -2]}}, {"text": 'a(b)="c"'}],
)
def test_arguments_come_back_as_they_were(arguments):
    assert classes.read(classes.written({"class": "a.b:C", **arguments})).arguments == arguments


@pytest.mark.parametrize(
    "text",
    ["a:B(1)", "a:B(x=f())", "a:B(**{'x': 1})", "a:B(x=1)(y=2)", "a:B(x=__import__('os'))", f"a:B(x={'-' * 300}1)",
     "a:B(x=1j)", "a:B(x=1e999)", "a:B(x=(",
     "a b:C", ":C", "a:", "a:B(x=1) or f(y=1)", f"a:B(x={'[' * 200}{']' * 200})"],
)  # fmt: skip
def test_a_text_that_names_no_class_with_plain_arguments_is_refused(text):
    with pytest.raises(ValueError, match=r"package.module:Class|plain values"):
        classes.read(text)


def test_composing_options_imports_nothing(desk):
    options(GATED)
    assert not was_imported(desk)


# The network


@pytest.mark.parametrize("flow", ["both", "forward"])
def test_an_own_fusion_is_at_every_level_with_its_arguments_flow_and_dose(desk, flow):
    net = SkipUnet("resnet18", skip="my_skips:Gated(reduction=2)", skip_flow=flow, weights=None, stem_skip=True)
    assert [type(fusion).__name__ for fusion in net.fusion_of.values()] == ["Gated"] * 5
    assert net.fusions[0].gate[0].out_channels == 32
    assert net.fusions[0].flow == flow
    assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)


def test_trying_a_class_draws_no_random_number(desk):
    torch.manual_seed(0)
    SkipUnet("resnet18", skip=["concat", "concat", "concat", "my_skips:Maximum"], weights=None)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    SkipUnet("resnet18", skip=["concat", "concat", "concat", "add"], weights=None)
    assert drawn.shape == torch.rand(1).shape


def test_an_own_fusion_has_matched_parameters(desk):
    sizes = [
        sum(p.numel() for p in SkipUnet("resnet18", skip=kind, weights=None, match_parameters=True).parameters())
        for kind in ("my_skips:Gated", "concat")
    ]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01


# What is wrong with a class is said in three lines, before a training


@pytest.mark.parametrize(
    ("skip", "problem", "accepted"),
    [
        ("no_skips:Maximum", "there is no module no_skips", "a file in this folder"),
        ("my_skips.sub:Maximum", "there is no module my_skips.sub", "a file in this folder"),
        ("my_skips:Maximun", "the module my_skips has no Maximun", "Maximum, "),
        ("my_skips:NoFusion", "NoFusion is no subclass of Fusion", "from unetseg.model.skips import Fusion"),
        ("my_skips:pathlib", "pathlib is no subclass of Fusion", "class pathlib(Fusion)"),
        ("{class: my_skips:Gated, redution: 4}", "unexpected keyword argument 'redution'", "reduction"),
        (
            "broken:Maximum",
            r"import of broken fails: NameError: .*\(broken.py, line 1\)",
            "a module",
        ),
    ],
)
def test_a_class_that_cant_be_used_is_refused_before_anything_else(desk, skip, problem, accepted):
    (desk / "broken.py").write_text("x = undefined\n")
    with pytest.raises(UserError, match=problem) as error:
        preflight.train(options(f"model.skip={skip}"))
    assert accepted in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("Narrow", "gives 2x1x16x12 for tensors of 2x64x16x12 and 2x64x16x12"),
        ("Square", "can't be built with deep_channels=512, skip_channels=256, .*: ValueError: the widths differ"),
        ("Failing", "fails on tensors of 2x512x16x12 and 2x256x16x12: RuntimeError"),
    ],
)
def test_a_class_that_fails_or_gives_another_shape_is_refused_with_the_widths(desk, kind, problem):
    skips = f"my_skips:{kind}" if kind != "Narrow" else ["my_skips:Narrow", "concat", "concat", "concat"]
    with pytest.raises(UserError, match=problem):
        SkipUnet("resnet18", skip=skips, weights=None)


def test_a_skip_that_leaves_nothing_without_it_has_no_flow_backward(desk):
    with pytest.raises(UserError, match=r"skip_flow=backward with .*my_skips:Whole"):
        SkipUnet("resnet18", skip="my_skips:Whole", skip_flow="backward", weights=None)


def test_a_wrong_class_fails_before_torch_is_imported(desk):
    code = "import sys; from unetseg.train import main; sys.argv[1:] = ['data=synthetic', 'model.skip=nowhere:A']\n"
    code += "try: main()\nexcept SystemExit as error: print(error.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
                          capture_output=True, text=True, cwd=desk)  # fmt: skip
    assert done.stdout.splitlines() == ["2 False"]
    assert "there is no module nowhere" in done.stderr


# Files of strangers: nothing is imported unless it is trusted


@pytest.fixture
def saved(desk) -> Path:
    """A checkpoint, in a run folder, of a network with own classes that this process has not imported."""
    run = desk / "runs/one"
    save_untrained(run / "checkpoints/best.ckpt", GATED, "model.weights=null")
    (run / "config.yaml").write_text(yaml.safe_dump(options(GATED).model_dump()))
    forget(desk)
    return run


def test_a_checkpoint_names_its_classes_as_text(saved):
    content = torch.load(saved / "checkpoints/best.ckpt", weights_only=True)
    assert content["hyper_parameters"]["model"]["skip"] == "my_skips:Gated(reduction=2)"


REFUSED = r"names the class my_skips:Gated\(reduction=2\): importing it would run the code of my_skips"


def test_a_checkpoint_is_loaded_where_it_is_trusted_and_imports_nothing_otherwise(saved, desk):
    ways = {
        "load": lambda **trust: unetseg.load(saved, device="cpu", **trust),
        "file": lambda **trust: unetseg.load(saved / "checkpoints/best.ckpt", device="cpu", **trust),
        "run": lambda **trust: unetseg.Run(saved).model(**trust),
        "weights": lambda **trust: begin_with(saved, **trust),
    }
    for way in ways.values():
        with pytest.raises(UserError, match=REFUSED) as error:
            way()
        assert str(error.value).splitlines()[-1] == "  try: trust=true"
        assert not was_imported(desk)
        way(trust=True)
        forget(desk)


CHANGED = "has changed since"


def edit(file: Path) -> None:
    with file.open("a") as text:
        text.write("# another line\n")


def test_a_class_that_has_changed_since_a_checkpoint_was_written_is_said(saved, desk, capsys):
    unetseg.load(saved, device="cpu", trust=True)
    edit(desk / "my_skips.py")
    unetseg.load(saved, device="cpu", trust=True)
    assert CHANGED not in capsys.readouterr().err, "this process runs what it imported before"
    save_untrained(desk / "same.ckpt", GATED, "model.weights=null")
    forget(desk)
    unetseg.load(saved, device="cpu", trust=True)
    assert f"my_skips:Gated {CHANGED} {saved}/checkpoints/best.ckpt was written" in capsys.readouterr().err
    unetseg.load(desk / "same.ckpt", device="cpu", trust=True)
    assert f"my_skips:Gated {CHANGED} {desk}/same.ckpt was written" in capsys.readouterr().err, "it ran the old source"


def test_a_class_is_compared_where_it_was_defined_and_what_a_checkpoint_says_is_no_more_than_compared(desk, capsys):
    (desk / "parts").mkdir()
    shutil.copy(desk / "my_skips.py", desk / "parts")
    (desk / "parts/__init__.py").write_text("from .my_skips import Gated\n")
    name = "parts:Gated(reduction=2)"
    classes.find(name, "model.skip")
    code = classes.code_of([name])
    assert [*code] == ["parts:Gated"]
    edit(desk / "parts/my_skips.py")
    for module in ("parts", "parts.my_skips"):
        sys.modules.pop(module)
    classes.say_changed(code, [name], "a.ckpt")
    assert not capsys.readouterr().err, "nothing is imported to be compared"
    classes.find(name, "model.skip")
    for strange in ({**code, "os:path": "x", "nowhere:Gated": "x"}, {}, None, [], {"parts:Gated": 3}):
        classes.say_changed(strange, [name], "a.ckpt")
    assert capsys.readouterr().err.splitlines() == 2 * [
        f"the source of parts:Gated {CHANGED} a.ckpt was written: it may compute something else"
    ]
    assert "nowhere" not in sys.modules


def begin_with(run, trust=False):
    """Begin another network with the weights of a run."""
    build.make_module(options(f"model.weights={run}", f"trust={str(trust).lower()}"))


def test_a_folder_of_the_hub_is_loaded_where_it_is_trusted_whatever_its_config_says(saved, desk, tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(UserError, match=REFUSED):
        unetseg.save_pretrained(saved, folder)
    unetseg.save_pretrained(saved, folder, trust=True)
    forget(desk)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"trust": True, "changes": {"skip": "concat"}}))
    for read in (unetseg.load, SkipUnet.from_pretrained):
        with pytest.raises(UserError, match=REFUSED):
            read(folder)
        assert not was_imported(desk)
    picture = np.zeros((40, 60, 3), np.uint8)
    ours, theirs = (unetseg.load(path, device="cpu", trust=True)(picture) for path in (saved, folder))
    assert (ours == theirs).all()


def test_commands_refuse_what_a_file_names(saved, desk, drawn):
    arguments = {
        "evaluate": (f"checkpoint={saved}", f"data.root={drawn}"),
        "export": (f"checkpoint={saved}", "output=model.onnx"),
        "predict": (f"checkpoint={saved}", "images=picture.png", "output=masks"),
        "train": (f"resume={saved}",),
    }
    from PIL import Image

    Image.new("RGB", (40, 60)).save(desk / "picture.png")
    for command, given in arguments.items():
        done = forked(f"unetseg.{command}", *given, folder=desk)
        assert done.returncode == 2, done.stderr
        assert "names the class my_skips:Gated(reduction=2)" in done.stderr
        lines = done.stderr.splitlines()
        assert len([line for line in lines if "is not finished; its best.ckpt" not in line]) == 3
        assert not was_imported(desk)


def test_nothing_that_a_file_says_is_trust(saved, desk):
    values = yaml.safe_load((saved / "config.yaml").read_text())
    (saved / "config.yaml").write_text(yaml.safe_dump(values | {"trust": True}))
    from unetseg.train import options_of_resumed_run

    with pytest.raises(UserError, match=REFUSED):
        preflight.train(options_of_resumed_run([f"resume={saved}"]))
    assert not was_imported(desk)


# Decoders, losses, data and callbacks


@pytest.mark.quick
def test_an_own_decoder_takes_the_place_of_the_unets(desk):
    torch.manual_seed(0)
    nets = [
        SkipUnet("resnet18", decoder=decoder, skip=skip, weights=None).eval()
        for decoder, skip in (("my_parts:Doubled(factor=3.0)", "add"), ("my_parts:Shallow", "concat"))
    ]
    images = torch.rand(1, 3, 64, 96)
    doubled = nets[0]
    assert doubled.decoder.factor == 3
    assert not doubled.is_smp_unet
    assert all(net(images).shape == (1, 1, 64, 96) for net in nets)
    assert [*blocks_of(nets[1])][-2:] == ["decoder", "head"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("model.decoder=my_parts:Power", "can't be built as Power"),
        ("model.decoder=my_parts:find", "find is no subclass of Module"),
        ("loss={class: my_parts:Power, p: 1}", "unexpected keyword argument 'p'"),
        ("callbacks=[my_parts:Counter]", "missing a required argument: 'file'"),
        ("callbacks=[my_parts:Power]", "Power is no subclass of Callback"),
    ],
)
def test_other_classes_are_checked_before_a_training(desk, change, problem):
    with pytest.raises(UserError, match=problem):
        preflight.train(options(change))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("model.decoder=my_parts:Bare", "has no `fusions`"),
        ("model.decoder=my_parts:OneForAll", "has no `fusions` of its levels(.|\n)*4 different objects"),
        ("loss=my_parts:EachPixel", "gives 2x16x12 for tensors of 2x1x16x12 and 2x16x12"),
        ("loss=my_parts:Constant", "has no gradient"),
    ],
)
def test_what_a_class_gives_is_checked_before_a_training(desk, change, problem):
    with pytest.raises(UserError, match=problem):
        build.make_module(options(change))


def test_an_own_decoder_without_nodes_has_no_deep_supervision(desk):
    with pytest.raises(UserError, match="has no `node_channels`"):
        build.make_module(options("model.decoder=my_parts:Shallow", "model.deep_supervision=true"))


def test_another_decoder_is_told_though_its_weights_fit(desk, tmp_path):
    SkipUnet("resnet18", decoder="my_parts:Doubled", weights=None).save_pretrained(tmp_path / "doubled")
    model = Segmenter(classes=2, encoder="resnet18", weights=None, decoder="my_parts:Doubled(factor=3.0)")
    found = load_weights(model, str(tmp_path / "doubled"), ["background", "pet"], trust=True)
    assert "decoder: my_parts:Doubled there, my_parts:Doubled(factor=3.0) here" in found.remarks


@pytest.mark.parametrize("skip", ["model.skip=nested", "model.stem_skip=true"])
def test_an_own_decoder_stands_beside_no_other(skip):
    with pytest.raises(UserError, match=r"model\.decoder=null with"):
        options("model.decoder=my_parts:Shallow", skip)


def test_class_weights_do_nothing_to_an_own_loss():
    with pytest.raises(UserError, match=r"class_weights=balanced does nothing to loss=my_parts:Power"):
        options("loss=my_parts:Power", "class_weights=balanced")


@pytest.mark.parametrize(
    ("source", "classes", "problem"),
    [
        ("my_parts:nothing", "[a,b]", "returns list"),
        ("{class: my_parts:find, root: ROOT}", "[b,a]", "has the classes a, b, data.classes b, a"),
        ("{class: my_parts:find, root: /nowhere}", "[a,b]", "data.root=/nowhere lacks"),
    ],
)
def test_what_a_function_finds_is_checked(desk, drawn_set, source, classes, problem):
    given = [f"data.source={source.replace('ROOT', str(drawn_set))}", f"data.classes={classes}"]
    data = compose("train", Train, ["data=own", *given]).data.model_dump()
    with pytest.raises(UserError, match=problem):
        find(data, seed=0)
    forget(desk)
    with pytest.raises(UserError, match="names the class my_parts:"):
        make_data(data, 0)
    assert not was_imported(desk)


def test_the_name_of_a_function_in_the_place_of_a_data_set_says_where_it_belongs():
    with pytest.raises(UserError, match=r"try: data=own data\.source=my_parts:find"):
        options("data=my_parts:find")


# A whole run


@pytest.fixture(scope="module")
def whole(drawn_set, tmp_path_factory) -> Path:
    """A folder with a run in which everything that can be the user's own is."""
    folder = tmp_path_factory.mktemp("own")
    for file in OWN:
        shutil.copy(file, folder)
    given = [
        *(option for option in TINY if not option.startswith(("data=", "data.train", "data.test"))),
        *("data=own", f"data.source={{class: my_parts:find, root: {drawn_set}}}", "data.classes=[a,b]"),
        *(GATED, "model.decoder=my_parts:Doubled", "loss={class: my_parts:Power, power: 1.5}"),
        *("callbacks=[{class: my_parts:Counter, file: epochs.txt}]", "model.encoder=resnet18", "model.weights=null"),
        *("gradients.every_n_steps=2", "gradients.routes_every_n_steps=2", "trainer.max_epochs=1", "name=own"),
    ]
    assert run_in(folder, "train", *given).returncode == 0
    return folder


def run_in(folder: Path, command: str, *given: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the user's modules are; what it has imported before is gone."""
    (folder / "imported").unlink(missing_ok=True)
    return forked(f"unetseg.{command}", *given, folder=folder)


@pytest.fixture
def own_run(whole, tmp_path) -> Path:
    """A copy of that folder, to go on in."""
    return shutil.copytree(whole, tmp_path / "whole")


def test_a_run_of_own_classes_has_all_that_others_have(whole):
    run = whole / "runs/own"
    flow = pd.read_csv(run / "gradient_flow.csv")
    assert set(flow[flow.kind == "skip"].block) == {f"level{level}" for level in range(1, 5)}
    assert "exit" in set(flow.kind)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["skip"] == "my_skips:Gated(reduction=2)"
    assert summary["variant"] == "my_skips:Gated(reduction=2) decoder my_parts:Doubled"
    assert (whole / "epochs.txt").read_text() == "0\n"


def test_an_evaluation_and_a_report_of_such_a_run_import_nothing_unless_trusted(own_run):
    refused = run_in(own_run, "evaluate", "checkpoint=runs/own")
    assert refused.returncode == 2
    assert "names the class my_parts:find" in refused.stderr
    done = run_in(own_run, "report", "runs=runs")
    assert done.returncode == 0, done.stderr
    assert not was_imported(own_run)
    measures = ("lesion=true", "mechanism=[hellinger]")
    done = run_in(own_run, "evaluate", "checkpoint=runs/own", "trust=true", "accelerator=cpu", *measures)
    assert done.returncode == 0, done.stderr
    written = {file.stem for file in (own_run / "runs/own/evaluation/own_test").glob("*.csv")}
    assert {"lesion", "hellinger"} <= written


def test_such_a_run_is_resumed_with_trust_alone(own_run):
    longer = ("resume=runs/own", "trainer.max_epochs=2")
    refused = run_in(own_run, "train", *longer)
    assert refused.returncode == 2
    assert "runs/own/config.yaml names the class my_" in refused.stderr
    assert not was_imported(own_run)
    done = run_in(own_run, "train", *longer, "trust=true")
    assert done.returncode == 0, done.stderr
    assert (own_run / "epochs.txt").read_text() == "0\n1\n"
    assert CHANGED not in done.stderr
    assert command_to_resume(RunFolder(own_run / "runs/own")).endswith("runs/own trust=true")
    for file in OWN:
        edit(own_run / file.name)
    done = run_in(own_run, "evaluate", "checkpoint=runs/own", "trust=true", "accelerator=cpu")
    of_evaluation = {"my_skips:Gated", "my_parts:Doubled", "my_parts:Power", "my_parts:find"}
    assert said(done.stderr, "last.ckpt", "runs/own") == of_evaluation
    done = run_in(own_run, "train", "resume=runs/own", "trainer.max_epochs=3", "trust=true")
    assert said(done.stderr, "last.ckpt") == of_evaluation | {"my_parts:Counter"}


def said(errors: str, *places: str) -> set[str]:
    """Return the classes that are said to have changed since a checkpoint was written."""
    found = re.findall(rf"the source of (\S+) {CHANGED} (\S+) was written", errors)
    assert all(place.endswith(places) for _, place in found)
    return {name for name, _ in found}


def test_a_model_needs_no_trust_for_the_loss_or_the_data_that_it_was_trained_with(desk):
    save_untrained(desk / "model.ckpt", "loss=my_parts:Power", "model.weights=null")
    assert unetseg.load(desk / "model.ckpt", device="cpu")(np.zeros((40, 60, 3), np.uint8)).shape == (40, 60)
    assert not was_imported(desk)


def test_an_own_fusion_is_exported(saved):
    output = export.export(compose("export", export.Export, [f"checkpoint={saved}", "output=m.onnx", "trust=true"]))
    picture = np.zeros((40, 60, 3), np.uint8)
    assert (unetseg.load(output)(picture) == unetseg.load(saved, device="cpu", trust=True)(picture)).all()


def test_a_sweep_has_a_folder_for_each_class():
    names = [run_name(options(skip).model_dump(), ()) for skip in ("model.skip=my_skips:Maximum", GATED)]
    assert names == ["my_skips.Maximum_seed0", "my_skips.Gated-reduction=2_seed0"]


# The page


def test_the_example_of_the_page_trains_as_it_stands(tmp_path, drawn):
    page = (ROOT / "docs/extending.md").read_text()
    module = re.search(r"```python\n(# my_skips\.py\n.*?)```", page, re.S)[1]
    command = re.search(r"^python -m unetseg\.train (.*my_skips.*)$", page, re.M)[1]
    (tmp_path / "my_skips.py").write_text(module)
    more = (*TINY[1:], f"data.root={drawn}", "trainer.max_epochs=1", "model.encoder=resnet18")
    done = run_in(tmp_path, "train", *shlex.split(command), *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(re.search(r"`(training resnet18, skip .*?)\.\.\.`", page)[1])
    assert 30 <= len(module.splitlines()) <= 45
