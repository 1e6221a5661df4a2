"""Exports: the probabilities of the checkpoint in other runtimes, at every size; nothing else is written or read."""

import io
import itertools
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import unetseg
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.export import export, work
from unetseg.inference import export as exporters
from unetseg.inference.engines import Engine, TorchEngine, load_exported, parse_metadata
from unetseg.inference.export import PaddedPool, PictureModel, trace
from unetseg.inference.export import export as write_export
from unetseg.inference.predictor import Predictor
from unetseg.model import Segmenter, checkpoint
from unetseg.model.segmenter import probabilities
from unetseg.options.command_schema import Export, Predict
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.predict import predict
from unetseg.training import build

NARROW = [32, 32, 16, 16, 8]
"""Widths of a decoder, for speed."""
ODD = [(1, 32, 32), (1, 1, 50), (2, 33, 95), (1, 141, 64)]
MIXED = {"skip": ["attention", "add", "placebo", "concat"], "skip_flow": ["both", "backward", "forward", "both"]}
MIXED["skip_gradient"] = [0.5, 1, 1, 0]


def pictures(batch: int, height: int, width: int) -> np.ndarray:
    """Return patches of colour, BxHxWx3 uint8."""
    patches = np.random.default_rng(0).integers(0, 256, (batch, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return patches.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def random_model(encoder: str = "resnet18", classes: int = 3, **settings) -> Segmenter:
    """Return a model whose batch normalisation has seen pictures, so that its probabilities differ."""
    torch.manual_seed(0)
    model = Segmenter(classes=classes, encoder=encoder, weights=None, **settings)
    for _ in range(3):
        model(torch.from_numpy(pictures(4, 64, 64)).permute(0, 3, 1, 2))
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint with a fusion of every kind and a flow of every kind."""
    model = {"encoder": "resnet18", "match_parameters": False, "short_skips": True, **MIXED}
    options = compose("train", Train, ["data=synthetic", "data.size=64", "data.target=trimap"])
    options = options.model_copy(update={"model": options.model.model_copy(update=model)})
    known = build.hyper_parameters(options)
    known["model"]["decoder_channels"] = NARROW
    weights = random_model(**MIXED, decoder_channels=NARROW).state_dict()
    path = tmp_path_factory.mktemp("saved") / "model.ckpt"
    state = {f"{checkpoint.PREFIX}{name}": value for name, value in weights.items()}
    torch.save({"hyper_parameters": known, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def exports(saved) -> dict[str, Path]:
    """The checkpoint's exports, by suffix."""
    paths = {suffix: saved.with_suffix(suffix) for suffix in (".onnx", ".pt2")}
    for path in paths.values():
        export(options(saved, path))
    return paths


def options(path: Path, output: Path, **others) -> Export:
    return Export(
        checkpoint=str(path), output=str(output), **{"overwrite": False, "int8": None, "trust": False, **others}
    )


def trusted(path: Path) -> Engine:
    return load_exported(path, trust=True)


def engine_of(path: Path) -> TorchEngine:
    model, known = checkpoint.load(path)
    return TorchEngine(model, classes=tuple(known["classes"]), view=View.of(known["data"]), device="cpu")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_export_is_the_checkpoint_at_every_size(saved, exports, suffix):
    ours, theirs = engine_of(saved), load_exported(exports[suffix], trust=True)
    assert (theirs.classes, theirs.view) == (ours.classes, ours.view) == (("background", "pet", "boundary"), View(64))
    for shape in ODD:
        found = theirs.probabilities(pictures(*shape))
        assert found.dtype == np.float32
        assert found.shape == (shape[0], 3, *shape[1:])
        np.testing.assert_allclose(found, ours.probabilities(pictures(*shape)), atol=1e-5)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    mirrored = pictures(1, 40, 56)[:, :, ::-1]
    np.testing.assert_allclose(theirs.probabilities(mirrored), ours.probabilities(mirrored), atol=1e-5)


SETTINGS = [
    {"skip": "concat", "classes": 2},
    {"skip": "add", "skip_flow": "forward"},
    {"skip": "attention", "skip_flow": "backward"},
    {"skip": ["concat", "add", "attention", "concat"], "skip_gradient": [0.5, 0.5, 2, 0]},
    {"skip": "none"},
    {"skip": ["respath", "scse", "multiply", "concat"], "skip_flow": ["both", "backward", "forward", "both"]},
    {"skip": ["scse", "respath", "respath", "respath"], "normalisation": "none", "classes": 2},
    {"skip": "nested"},
    {"skip": "full", "encoder": "densenet121"},
    {"skip": "channel", "skip_flow": ["both", "both", "forward", "both"]},
    {"skip": "attention", "skip_scale": "learned"},
    {"skip": "full", "skip_scale": "kappa"},
    {"skip": "permuted"},
    {"skip": "add", "stem_skip": True},
    {"short_skips": False, "normalisation": "none"},
    {"encoder": "densenet121", "skip": "add", "short_skips": False},
    {"short_skips": "concat"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_becomes_a_program_without_what_only_training_needs(settings):
    model = random_model(**settings, decoder_channels=NARROW)
    program = trace(PictureModel(model))
    assert not any("detach" in str(node.target) or "dropout" in str(node.target) for node in program.graph.nodes)
    assert not any("num_batches_tracked" in name for name in program.state_dict)
    assert not any(parameter.requires_grad for parameter in program.state_dict.values())
    run = program.module(check_guards=False)
    with torch.inference_mode():
        for shape in [(1, 32, 47), (2, 61, 33)]:
            images = torch.from_numpy(pictures(*shape))
            expected = probabilities(model(images.permute(0, 3, 1, 2)))
            assert torch.allclose(run(images), expected, atol=1e-5)


@pytest.mark.parametrize("skip", ["full", ["respath", "scse", "multiply", "concat"]], ids=str)
def test_other_kinds_of_skips_become_an_onnx_file_that_agrees(tmp_path, skip):
    model = random_model(skip=skip, decoder_channels=NARROW)
    errors = write_export(model, {"classes": ["a", "b", "c"], "size": 64}, tmp_path / "model.onnx").errors
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (5, 3)])
def test_a_maximum_over_windows_that_are_cut_off_is_one_over_a_padded_picture(kernel, stride):
    pool = nn.MaxPool2d(kernel, stride, ceil_mode=True)
    padded = PaddedPool(pool)
    for height, width in itertools.product(range(kernel, 20), repeat=2):
        features = torch.randn(1, 2, height, width) - 5
        assert torch.equal(padded(features), pool(features))


def test_only_such_a_maximum_is_replaced():
    others = [nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.MaxPool2d(2, 3, ceil_mode=True)]
    others.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    others[-1].register_forward_hook(lambda module, given, result: -result)
    assert PaddedPool.stands_for(nn.MaxPool2d(3, 2, ceil_mode=True))
    assert not any(map(PaddedPool.stands_for, others))


class HalvedAndBack(nn.Module):
    """Sides that are halved, rounded up, as MobileViT and TensorFlow's padding have them."""

    def forward(self, images):
        return functional.interpolate(images, size=[math.ceil(side / 2) for side in images.shape[-2:]])


def test_sides_that_are_rounded_up_are_written():
    sides = {2: torch.export.Dim("height", min=3), 3: torch.export.Dim("width", min=3)}
    program = torch.export.export(HalvedAndBack(), (torch.zeros(1, 1, 8, 12),), dynamic_shapes=(sides,))
    assert any(node.target is math.ceil for node in program.graph.nodes)
    loaded = torch.export.load(io.BytesIO(exporters.to_pt2(program, {}))).module()
    for height, width in itertools.product(range(3, 10), repeat=2):
        images = torch.rand(1, 1, height, width)
        assert torch.equal(loaded(images), HalvedAndBack()(images))


def test_where_the_tracer_can_not_tell_the_sides_of_the_levels_every_remainder_is_compared(tmp_path):
    model = random_model("tu-test_resnet", decoder_channels=NARROW)  # pools with ceil_mode
    errors = write_export(model, {"classes": ["a", "b", "c"], "size": 64}, tmp_path / "model.pt2").errors
    assert max(errors.values()) < 1e-5
    sides = [tuple(map(int, shape.split("x")[1:])) for shape in errors]
    for side in zip(*sides, strict=True):
        assert {length % 32 for length in side} == {*range(32)}


def test_exporting_leaves_the_model_as_it_was():
    model = random_model(**MIXED)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    PictureModel(model)
    assert [fusion.flow for fusion in model.net.fusions] == MIXED["skip_flow"]
    assert [fusion.gradient for fusion in model.net.fusions] == MIXED["skip_gradient"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_file_says_what_the_model_is_and_where_it_comes_from(saved, exports):
    import onnx

    model = onnx.load(exports[".onnx"])
    assert model.metadata_props[-1].key == "sha256"
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props[:-1]}
    assert found["classes"] == ["background", "pet", "boundary"]
    assert (found["size"], found["encoder"], found["seed"], found["data"]) == (64, "resnet18", 0, "synthetic")
    assert {key: found[key] for key in MIXED} == MIXED
    assert found["checkpoint"] == str(saved)
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "git_commit" in found
    assert [entry.dim_param for entry in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", "height", "width", ""]  # fmt: skip
    with zipfile.ZipFile(exports[".pt2"]) as archive:
        entries = {name.rpartition("/")[2] for name in archive.namelist() if "/extra/" in name}
    assert entries == found.keys()


def test_exports_name_no_file_of_this_machine(exports):
    for path in exports.values():
        assert str(Path(exporters.__file__).parent).encode() not in path.read_bytes()


def parity(engines, images) -> None:
    """Hold engines against the first: 1e-3 in probability, and 0.01 % of all pixels in another class."""
    changed = pixels = 0
    for image in images:
        first, *others = (engine.probabilities(image[None])[0] for engine in engines)
        for other in others:
            assert np.abs(first - other).max() < 1e-3
            changed += (first.argmax(0) != other.argmax(0)).sum()
            pixels += first[0].size
    assert changed <= 1e-4 * pixels


@pytest.mark.quick
def test_torch_onnx_and_pt2_agree_on_generated_pictures_at_their_own_sizes(saved, exports):
    sizes = np.random.default_rng(1).integers(40, 200, (6, 2))
    parity([engine_of(saved), *map(trusted, exports.values())], [pictures(1, *size)[0] for size in sizes])


def test_torch_onnx_and_pt2_agree_on_20_pets_at_their_own_sizes(saved, exports, pets):
    files = sorted((pets / "images").glob("*.jpg"))
    images = [np.array(Image.open(file).convert("RGB")) for file in files[:: len(files) // 20][:20]]
    engines = [engine_of(saved), *map(trusted, exports.values())]
    parity(engines, images)
    ours, *others = (np.concatenate([mask.ravel() for mask in Predictor(engine)(images[:5])]) for engine in engines)
    assert all((ours != other).mean() <= 1e-4 for other in others)


def written_before(monkeypatch, path: Path) -> None:
    """Let the export to .pt2 be this file, without the tracer."""
    monkeypatch.setattr(exporters, "trace", lambda model: None)
    monkeypatch.setattr(exporters, "shapes_to_check", lambda program, side: exporters.SHAPES)
    monkeypatch.setitem(exporters.WRITERS, ".pt2", lambda program, entries: path.read_bytes())


def test_what_differs_from_the_checkpoint_is_not_written(saved, exports, tmp_path, monkeypatch):
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["model.net.segmentation_head.0.bias"][0] += 0.05
    torch.save(content, tmp_path / "other.ckpt")
    written_before(monkeypatch, exports[".pt2"])
    with pytest.raises(SystemExit, match=r"differs from the checkpoint by .*: not written"):
        work(options(tmp_path / "other.ckpt", tmp_path / "model.pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["other.ckpt"]


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "resnet18"])
def test_an_encoder_whose_file_does_not_run_is_refused_by_its_name(tmp_path, monkeypatch, encoder):
    def fails(*args):  # as the .pt2 of mit_b0 does
        raise RuntimeError("Guard failed: a side of the picture")

    monkeypatch.setattr(exporters, "largest_errors", fails)
    model = random_model(encoder, decoder_channels=NARROW)
    # of ResNets and DenseNets it is promised: there it is a defect of ours
    kind, text = (
        (RuntimeError, "Guard failed") if encoder == "resnet18" else (UserError, f"the encoder {encoder} can't")
    )
    with pytest.raises(kind, match=text):
        write_export(model, {"classes": ["a", "b", "c"], "size": 64}, tmp_path / "model.pt2")
    assert not [*tmp_path.iterdir()]


def test_weights_that_an_onnx_file_can_not_hold_are_told(tmp_path, monkeypatch):
    model = random_model("resnet18", decoder_channels=NARROW)
    monkeypatch.setattr(exporters, "LARGEST_ONNX", 40_000_000)
    with pytest.raises(UserError, match=r"the weights take 0\.046 GB") as caught:
        write_export(model, {"classes": ["a", "b", "c"], "size": 64}, tmp_path / "model.onnx")
    assert "accepted: less than 0.04 GB" in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_nothing_is_overwritten_unasked(saved, exports, tmp_path, monkeypatch):
    written_before(monkeypatch, exports[".pt2"])
    output = tmp_path / "model.pt2"
    output.write_text("mine")
    with pytest.raises(UserError, match="overwrite=true"):
        export(options(saved, output))
    assert output.read_text() == "mine"
    export(options(saved, output, overwrite=True))
    assert output.read_bytes() == exports[".pt2"].read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_wrong_options_end_the_command_with_status_2_at_once(saved, tmp_path):
    for output in ("model.tflite", str(saved)):
        command = [sys.executable, "-m", "unetseg.export", f"checkpoint={saved}", f"output={output}"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "accepted: FILE.onnx or FILE.pt2" in ended.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(saved, exports, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else name)
    with pytest.raises(UserError, match=r"pip install 'unetseg\[export\]'"):
        export(options(saved, tmp_path / "model.onnx"))
    if package == "onnxruntime":
        with pytest.raises(UserError, match=r"pip install 'unetseg\[export\]'"):
            load_exported(exports[".onnx"])


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_damaged_file_is_refused(exports, tmp_path, suffix, damage):
    whole = exports[suffix].read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1  # one bit of a weight
    content = {"empty": b"", "text": b"text", "truncated": whole[: len(whole) // 2], "flipped": bytes(flipped)}[damage]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.\w+ can't be loaded: "):
        load_exported(path, trust=True)


def test_foreign_files_are_refused(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    one = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", one[:1], one[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(made, tmp_path / "model.onnx")
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(1),)), tmp_path / "model.pt2")
    for suffix in (".onnx", ".pt2"):
        with pytest.raises(UserError, match="doesn't say its classes"):
            load_exported(tmp_path / f"model{suffix}", trust=True)
    with pytest.raises(UserError, match=r"accepted: \.onnx, \.pt2"):
        load_exported(tmp_path / "model.ckpt")


def test_a_pt2_is_not_opened_unless_it_is_trusted(saved, exports, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: pytest.fail("it was opened"))
    for load in (load_exported, unetseg.load):
        with pytest.raises(UserError, match=r"model\.pt2 is a program: (.|\n)*trust=true"):
            load(exports[".pt2"])
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(photo)
    given = [f"checkpoint={exports['.pt2']}", f"images={photo}", f"output={tmp_path}/out"]
    with pytest.raises(UserError, match="is a program"):
        predict(compose("predict", Predict, given))
    assert not (tmp_path / "out").exists()


def test_a_trusted_pt2_segments(exports):
    assert unetseg.load(exports[".pt2"], trust=True)(pictures(1, 40, 50)[0]).shape == (40, 50)


def without_seal(path: Path):
    """Return an ONNX file as a message, without its checksum."""
    import onnx

    model = onnx.load(path)
    model.metadata_props.remove(model.metadata_props[-1])
    return model


def made_external(tensor, location: str) -> None:
    """Let a tensor's numbers lie in another file."""
    import onnx

    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize("location", ["key", "../key", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("where", ["weight", "attribute", "branch", "function"])
def test_numbers_in_other_files_are_not_read(exports, tmp_path, monkeypatch, location, where):
    import onnx
    from onnx import helper

    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(bytes(10**5))
    model = without_seal(exports[".onnx"])
    tensor = helper.make_tensor("secret", onnx.TensorProto.FLOAT, [16], bytes(64), raw=True)
    made_external(tensor, location)
    node = helper.make_node("Constant", [], ["secret"], value=tensor)
    if where == "weight":
        model.graph.initializer.append(tensor)
    elif where == "attribute":
        model.graph.node.insert(0, node)
    elif where == "branch":
        branch = helper.make_graph([node], "branch", [], [])
        model.graph.node.append(helper.make_node("If", ["images"], ["x"], then_branch=branch, else_branch=branch))
    else:
        model.functions.append(helper.make_function("ours", "f", [], ["secret"], [node], []))
    Path("model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"model\.onnx can't be loaded: the numbers of a tensor lie in another file"):
        load_exported("model.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 10**9),
        ("size", 0),
        ("size", "64"),
        ("classes", []),
        ("classes", {"a": 1}),
        ("classes", [1, 2]),
        ("classes", ["a"] * 300),
    ],
)
def test_metadata_that_no_model_has_are_refused(exports, tmp_path, key, value):
    model = without_seal(exports[".onnx"])
    next(entry for entry in model.metadata_props if entry.key == key).value = json.dumps(value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=f"can't be loaded: it(s {key}| has 0 classes| has 300 classes)"):
        load_exported(tmp_path / "model.onnx")


@pytest.mark.parametrize("ends", ["[10, 0]", "[5, 5]", "[NaN, 1]", "[0, Infinity]", "[1]", "[1, 2, 3]", '"ab"', "true"])
def test_a_range_that_no_model_has_is_refused(ends):
    with pytest.raises(ValueError, match=r"range=.* is not accepted, but null, or \[low, high\]"):
        parse_metadata({"classes": '["a", "b"]', "size": "64", "range": ends})


def test_a_model_of_other_classes_than_it_says_is_refused_when_it_is_used(exports, tmp_path):
    model = without_seal(exports[".onnx"])
    next(entry for entry in model.metadata_props if entry.key == "classes").value = '["a", "b"]'
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"shape \(1, 3, 64, 64\)\n  accepted: float32 of shape \(1, 2, 64, 64\)"):
        unetseg.load(tmp_path / "model.onnx")(pictures(1, 40, 50)[0])
