"""Exports in int8, and OpenVINO: the model of the checkpoint in another arithmetic, from files that are data."""

import json
import sys

import numpy as np
import onnx
import pytest
from PIL import Image
from test_export import engine_of, options, pictures, saved

import unetseg
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.export import export
from unetseg.inference import export as exporters
from unetseg.inference import quantization
from unetseg.inference.engines import OpenVinoEngine, load_exported
from unetseg.inference.predictor import Predictor
from unetseg.inference.quantization import MOST, Recorder, inputs_of, quantize
from unetseg.inference.selection import select_files

__all__ = ["saved"]  # a fixture
CLASSES = ("background", "pet", "boundary")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        array = np.roll(pictures(1, 64 + 8 * number, 80)[0], 7 * number, axis=1)
        Image.fromarray(array).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def float32(saved, tmp_path_factory):
    """The checkpoint's export in float32."""
    path = tmp_path_factory.mktemp("float32") / "model.onnx"
    export(options(saved, path))
    return path


@pytest.fixture(scope="module")
def int8(float32, folder):
    """The checkpoint's export in int8."""
    path = float32.with_name("int8.onnx")
    inputs, others = inputs_of(select_files(str(folder), path), CLASSES, View(64), list)
    assert (len(inputs), len(others)) == (10, 2)
    content = quantize(float32.read_bytes(), inputs)
    entries = {entry.key: entry.value for entry in onnx.load(float32).metadata_props if entry.key != "sha256"}
    path.write_bytes(exporters.with_metadata(content, entries))
    return path


def test_openvino_gives_what_onnxruntime_gives(float32):
    found = load_exported(float32, runtime="openvino")
    expected = load_exported(float32)
    assert (found.classes, found.view) == (expected.classes, expected.view)
    for shape in [(1, 64, 64), (3, 33, 95)]:
        answer = found.probabilities(pictures(*shape))
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected.probabilities(pictures(*shape)), atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_is_the_model_but_for_coarser_numbers(saved, int8, runtime):
    ours, theirs = engine_of(saved), load_exported(int8, runtime=runtime)
    assert (theirs.classes, theirs.view) == (ours.classes, ours.view)
    difference = np.abs(theirs.probabilities(pictures(2, 64, 96)) - ours.probabilities(pictures(2, 64, 96)))
    assert 1e-5 < difference.mean() < 0.02


def test_the_convolutions_weights_are_integers_of_a_byte(int8, float32):
    model = onnx.load(int8)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        source = made_by[node.input[1]]
        assert source.op_type == "DequantizeLinear"
        assert kinds[source.input[0]] == onnx.TensorProto.INT8
        # products of two neighbours with 8 bits wouldn't fit where CPUs without VNNI add them up
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == source.input[0])
        assert np.abs(onnx.numpy_helper.to_array(weights).astype(int)).max() <= 64
    assert int8.stat().st_size < 0.35 * float32.stat().st_size


class Drawn:
    """An engine that says what it is told to."""

    def __init__(self, *maps: np.ndarray):
        self.classes, self.view, self.maps = ("background", "vessel"), View(64), iter(maps)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.eye(2, dtype=np.float32)[next(self.maps)], -1, 1)


def test_an_int8_that_is_of_no_use_is_refused(int8, float32):
    inputs = [pictures(1, 64, 64)]
    before, after = load_exported(float32), load_exported(int8)
    found = quantization.changed(before, before, inputs)
    assert (found.share, {*found.agreement.values()}) == (0, {1})
    after.probabilities = lambda images: np.roll(before.probabilities(images), 1, axis=1)
    with pytest.raises(UserError, match=r"100\.0% of the pixels get another class, more than 5%"):
        quantization.changed(before, after, inputs)


@pytest.mark.parametrize("left", [0, 78, 79, 96])
def test_an_int8_that_loses_a_small_class_is_refused(left):
    float32 = np.zeros((2, 1, 64, 64), int)
    float32[:, :, :7, :7] = 1  # 98 pixels, a hundredth of all
    less = float32.copy()
    less[float32 == 1] = np.arange(98) < left
    if left < 79:
        with pytest.raises(
            UserError, match=rf"of vessel have an IoU of {left / 98:.2f} with float32's, below 0\.8: not"
        ):
            quantization.changed(Drawn(*float32), Drawn(*less), [None, None])
    else:
        found = quantization.changed(Drawn(*float32), Drawn(*less), [None, None])
        assert found.share == (98 - left) / 8192
        assert found.agreement == {"background": pytest.approx(8094 / (8192 - left)), "vessel": left / 98}


def test_a_class_of_single_pixels_is_not_judged():
    float32, none = np.zeros((1, 1, 128, 128), int), np.zeros((1, 1, 128, 128), int)
    float32[0, 0, 0, 0] = 1
    for before, after in ((float32, none), (none, float32)):
        found = quantization.changed(Drawn(*before), Drawn(*after), [None])
        assert [*found.agreement] == ["background"]


def test_an_int8_that_gives_no_numbers_is_refused():
    after = Drawn(np.zeros((1, 8, 8), int))
    after.probabilities = lambda images: np.full((1, 2, 8, 8), np.nan, np.float32)
    with pytest.raises(UserError, match="the probabilities are not numbers"):
        quantization.changed(Drawn(np.zeros((1, 8, 8), int)), after, [None])
    with pytest.raises(ValueError, match="no inputs"):
        quantization.changed(after, after, [])


def test_the_command_measures_on_what_the_model_gets_in_prediction(saved, folder, tmp_path, monkeypatch, capsys):
    given, compared = [], []
    changes = quantization.Changes(0.0123, {"background": 0.9876, "pet": 0.91})
    monkeypatch.setattr(exporters, "quantize", lambda content, inputs: given.extend(inputs) or content)
    monkeypatch.setattr(exporters, "changed", lambda before, after, inputs: compared.append(inputs) or changes)
    export(options(saved, tmp_path / "model.onnx", int8=str(folder)))
    engine = engine_of(saved)
    seen, answer = [], engine.probabilities
    engine.probabilities = lambda images: seen.append(images) or answer(images)
    for path in sorted(folder.iterdir()):
        Predictor(engine)(path)
    apart = np.arange(len(seen)) % 5 == 4
    seen = np.concatenate(seen)
    np.testing.assert_array_equal(np.concatenate(given), seen[~apart])
    for others in compared:
        np.testing.assert_array_equal(np.concatenate(others), seen[apart])
    said = capsys.readouterr().out
    for runtime in ("onnxruntime", "openvino"):
        assert f"in int8 by {runtime}, on 2 further inputs: 1.23% of the pixels get another class; IoU with" in said
    assert said.count("float32's: background 0.988, pet 0.910") == 2
    assert "masks?" not in said
    stated = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert stated["int8"] == "true"
    assert json.loads(stated["classes"]) == [*CLASSES]


def test_of_many_inputs_each_is_kept_with_the_same_probability():
    recorder = Recorder(("a", "b"), View(1))
    for number in range(4 * MOST):
        recorder.probabilities(np.full((1, 1, 1, 3), number % 256, np.uint8))
    assert len(recorder.kept) == MOST
    recorders = [Recorder(("a", "b"), View(1)) for _ in range(200)]
    for seed, each in enumerate(recorders):
        each.generator = np.random.default_rng(seed)
        for number in range(2 * MOST):
            each.probabilities(np.full((1, 1, 1, 3), number, np.uint8))
    first_half = np.mean([np.mean(np.array(each.kept)[:, 0, 0, 0, 0] < MOST) for each in recorders])
    assert abs(first_half - 0.5) < 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"int8": "PICTURES", "output": "model.pt2"}, "accepted: an .onnx"),
        ({"int8": "EMPTY"}, "holds no picture; 1 pictures in further folders are not taken: int8='FOLDER/**/*'"),
        ({"int8": "FEW"}, "accepted: 10 pictures or more"),
    ],
)
def test_int8_needs_an_onnx_and_pictures(saved, folder, tmp_path, given, message):
    (tmp_path / "empty/below").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "empty/below/one.png")
    places = {"PICTURES": str(folder), "EMPTY": str(tmp_path / "empty"), "FEW": str(folder / "1*.png")}
    with pytest.raises(UserError) as caught:
        export(options(saved, tmp_path / given.get("output", "model.onnx"), int8=places[given["int8"]]))
    assert message in str(caught.value)


def test_masks_in_place_of_pictures_are_asked_about(saved, tmp_path, monkeypatch, capsys):
    for number in range(10):
        Image.fromarray(pictures(1, 64, 64)[0] // 200).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(exporters, "quantize", lambda content, inputs: content)
    export(options(saved, tmp_path / "model.onnx", int8=str(tmp_path)))
    assert "are these masks?" in capsys.readouterr().out


def test_an_export_is_not_exported_again(float32, tmp_path):
    with pytest.raises(UserError, match="is an export already"):
        export(options(float32, tmp_path / "again.onnx"))


def test_openvino_is_for_onnx(saved, float32):
    with pytest.raises(UserError, match="runs in torch"):
        unetseg.load(saved, runtime="openvino")
    with pytest.raises(UserError, match="runtime=openvino with"):
        unetseg.load("model.pt2", runtime="openvino", trust=True)
    with pytest.raises(UserError, match="runtime=tensorrt"):
        unetseg.load(float32, runtime="tensorrt")
    with pytest.raises(UserError, match="precision=bfloat16"):
        unetseg.load(float32, precision="bfloat16")


def test_openvino_reads_no_damaged_file_and_no_other_file(float32):
    content = bytearray(float32.read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="don't match their checksum"):
        OpenVinoEngine(bytes(content))
    model = onnx.load(float32)
    del model.metadata_props[:]
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="lie in another file"):
        OpenVinoEngine(model.SerializeToString())


def test_without_openvino_the_extra_is_named(float32, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="openvino is not installed") as caught:
        load_exported(float32, runtime="openvino")
    assert "unetseg[openvino]" in str(caught.value)
