"""The predict command: what it writes, what it keeps, and what it does with what it can't read."""

import csv
import errno
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, quick, timed
from fake_engine import Brightness, save_untrained
from PIL import Image

from unetseg import predict as door
from unetseg.data import tiff
from unetseg.data.colours import class_colours, overlay
from unetseg.data.pictures import open_picture
from unetseg.errors import Halt, UserError
from unetseg.inference import outputs
from unetseg.inference.engines import TorchEngine
from unetseg.inference.outputs import Outputs, lock_folder
from unetseg.inference.predictor import Predictor, argmax
from unetseg.options.command_schema import Predict
from unetseg.options.compose import compose

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model") / "model.ckpt")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of three pictures and something else."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, shape in (("a.jpg", (40, 50, 3)), ("b.png", (64, 64, 3)), ("c.tif", (33, 70, 3))):
        Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def predicted(model: Path, images: object, output: Path, *more: str) -> list[Path]:
    """Do what the command does with these options."""
    given = [f"checkpoint={model}", f"images={images}", f"output={output}", "accelerator=cpu", *more]
    options = compose("predict", Predict, given)
    door.check_files(options)
    return door.predict(options)


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, int]:
    """Return the modification times of all files in it."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.quick
def test_a_folders_pictures_give_masks_with_a_palette_overlays_probabilities_and_a_table(model, photos, tmp_path):
    import unetseg

    output = tmp_path / "out"
    assert predicted(model, photos, output, "overlay=true", "probability=true") == []
    wanted = {"predictions.csv"}
    for name in "abc":
        wanted |= {f"{name}.png", f"overlay/{name}.png", f"probability/{name}.npy"}
    assert contents(output).keys() == wanted | {"overlay/legend.png"}
    segment, rows = unetseg.load(model), table(output)
    assert [row["picture"] for row in rows] == ["a.jpg", "b.png", "c.tif"]
    for row in rows:
        path, stored = photos / row["picture"], Image.open(output / row["mask"])
        mask, proba = segment(path), segment.probability(path)
        assert stored.mode == "P"
        assert np.array_equal(np.asarray(stored), mask)
        assert np.array_equal(np.unique(stored.convert("RGB")), np.unique(class_colours()[np.unique(mask)]))
        probabilities = np.load(output / f"probability/{path.stem}.npy")
        assert probabilities.dtype == np.float16
        np.testing.assert_allclose(probabilities, proba, atol=3e-4)
        drawn = np.asarray(Image.open(output / f"overlay/{path.stem}.png"))
        assert np.array_equal(drawn, overlay(np.asarray(Image.open(path).convert("RGB")), mask))
        assert (int(row["height"]), int(row["width"])) == mask.shape
        assert float(row["share_pet"]) == pytest.approx(mask.mean(), abs=1e-6)
        assert float(row["share_pet"]) + float(row["share_background"]) == pytest.approx(1, abs=2e-6)
        assert float(row["seconds"]) > 0


@pytest.mark.parametrize(("images", "masks"), [("a.jpg", ["a"]), ("*.*g", ["a", "b"]), ("**/c*", ["c"])])
def test_a_file_and_a_pattern_are_taken_too(model, photos, tmp_path, images, masks):
    predicted(model, photos / images, tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == masks


def test_what_is_there_is_kept_and_the_rest_is_finished(model, photos, tmp_path, capsys):
    output = tmp_path / "out"
    predicted(model, photos, output)
    before, rows = contents(output), table(output)
    (output / "b.png").unlink()
    with (output / "predictions.csv").open("a") as file:
        file.write("c.tif,c.png,70,33,0.")  # as a killed run leaves it
    predicted(model, photos, output)
    assert "1 predicted, 2 kept, 0 unreadable" in capsys.readouterr().out
    after = contents(output)
    assert {name for name in before if after[name] == before[name]} == {"a.png", "c.png"}
    assert [row | {"seconds": ""} for row in table(output)] == [row | {"seconds": ""} for row in rows]
    predicted(model, photos, output, "overlay=true")
    assert contents(output)["b.png"] == after["b.png"], "only what is new is written"
    predicted(model, photos, output, "overwrite=true")
    assert not {name for name in before if contents(output)[name] == after[name]}


def test_an_unreadable_picture_is_named_and_left_out_and_the_status_is_1(model, photos, tmp_path, monkeypatch, capsys):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:900])
    arguments = [f"checkpoint={model}", f"images={photos}", f"output={tmp_path}/out", "accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    with pytest.raises(SystemExit) as left:
        door.main()
    assert left.value.code == 1
    told = capsys.readouterr()
    assert "photos/b.png can't be read" in told.err.replace("\n", "")
    assert "2 predicted, 0 kept, 1 unreadable" in told.out
    assert contents(tmp_path / "out").keys() == {"a.png", "c.png", "predictions.csv"}


def test_nothing_of_a_folder_is_passed_over_in_silence(model, photos, tmp_path, capsys):
    (photos / "more/deep").mkdir(parents=True)
    for name in ("more/d.png", "more/deep/e.png", "._a.jpg"):
        Image.new("RGB", (40, 40)).save(photos / name, "PNG")
    output = photos / "masks"  # its masks are no pictures that were forgotten
    for _ in range(2):
        predicted(model, photos, output)
        told = capsys.readouterr().out
        assert "2 passed over, by their names no pictures: ._a.jpg, notes.txt" in told
        assert "2 pictures in further folders are not taken: images='FOLDER/**/*' takes them" in told
    predicted(model, f"{photos}/*", tmp_path / "out")
    told = capsys.readouterr()
    assert "left out: " in told.err, "a pattern takes what it matches"
    assert "5 pictures in further folders" in told.out
    (tmp_path / "empty").mkdir()
    (photos / "more").rename(tmp_path / "empty/more")
    with pytest.raises(UserError, match=r"2 pictures in further folders(.|\n)*accepted: \.jpg, \.jpeg"):
        predicted(model, tmp_path / "empty", tmp_path / "out2")


NAMES = {
    b"K\xe4tzchen": r"K\udce4tzchen.png",
    b"a\n0 predicted, all good": r"a\n0 predicted, all good.png",
    b"x\x1b[2Jy": r"x\x1b[2Jy.png",
    "back\u202egnp".encode(): r"back\u202egnp.png",
    b'say "hi", you': 'say "hi", you.png',
    b"=1+2": "'=1+2.png",
    b"-cmd": "'-cmd.png",
    b"n" * 251: "n" * 251 + ".png",
}


def test_any_name_that_a_file_can_have_is_predicted_and_shown_without_its_powers(model, tmp_path, capsys):
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", (40, 40)).save(folder / os.fsdecode(name + b".png"))
    assert predicted(model, folder, output, "overlay=true", "probability=true") == []
    assert {row["picture"] for row in table(output)} == set(NAMES.values())
    assert {row["mask"] for row in table(output)} == set(NAMES.values())
    assert {os.fsencode(path.stem) for path in output.glob("*.png")} == NAMES.keys()
    before = contents(output)
    predicted(model, folder, output, "overlay=true", "probability=true")
    assert "0 predicted, 8 kept" in capsys.readouterr().out
    assert {name: before[name] for name in before if name != "predictions.csv"}.items() <= contents(output).items()
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    assert len(predicted(model, folder, tmp_path / "other")) == 8
    told = capsys.readouterr().err
    assert told.count("left out: ") == told.count("\nleft out: ") + told.startswith("left out: ") == 8
    assert "\x1b[2J" not in told
    assert "\u202e" not in told


def test_one_picture_never_ends_a_folder(model, photos, tmp_path, capsys, monkeypatch):
    from unetseg.inference.predictor import Predictor

    bands, raised = Predictor.bands, iter([MemoryError(), RuntimeError("can't allocate"), None])

    def failing(self, pictures):
        if error := next(raised):
            raise error
        return bands(self, pictures)

    monkeypatch.setattr(Predictor, "bands", failing)
    assert [path.name for path in predicted(model, photos, tmp_path / "out")] == ["a.jpg", "b.png"]
    assert "left out: " in (told := capsys.readouterr().err)
    assert "a.jpg: MemoryError" in told
    assert "b.png: can't allocate" in told
    (tmp_path / "out/a.png").mkdir()  # can't be replaced
    monkeypatch.setattr(Predictor, "bands", bands)
    assert [path.name for path in predicted(model, photos, tmp_path / "out", "overwrite=true")] == ["a.jpg"]
    assert len(table(tmp_path / "out")) == 2


def test_a_model_of_weights_that_are_no_numbers_gives_no_mask(model, photos, tmp_path):
    content = torch.load(model, weights_only=True)
    content["state_dict"] = {name: value * float("nan") for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match="NaN or infinity"):
        predicted(tmp_path / "nan.ckpt", photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_probabilities_that_are_no_numbers_give_no_mask(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TorchEngine, "probabilities", lambda self, images: np.full((1, 2, 64, 64), np.nan, np.float32))
    assert len(predicted(model, photos, tmp_path / "out")) == 3
    assert "not numbers (NaN)" in capsys.readouterr().err
    assert contents(tmp_path / "out").keys() == {"predictions.csv"}


def test_two_predicts_into_one_folder_are_refused(model, photos, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with lock_folder(output), pytest.raises(UserError, match="being predicted into by another process"):
        predicted(model, photos, output)
    (output / ".predict.lock").touch()  # as a killed one leaves it
    predicted(model, photos, output)
    assert contents(output).keys() == {"a.png", "b.png", "c.png", "predictions.csv"}


def test_a_link_in_the_output_leads_nowhere(model, photos, tmp_path):
    output, victim = tmp_path / "out", tmp_path / "victim"
    output.mkdir()
    victim.write_text("precious")
    for name in (".a.png.tmp", ".predictions.csv.tmp", "predictions.csv"):
        (output / name).symlink_to(victim)
    with pytest.raises(UserError, match="of another kind"):
        predicted(model, photos, output)
    (output / "predictions.csv").unlink()
    predicted(model, photos, output)
    (output / ".predict.lock").symlink_to(victim)
    with pytest.raises(UserError, match=r"predict\.lock can't be written"):
        predicted(model, photos, output)
    (output / ".predict.lock").unlink()
    (output / "overlay").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        predicted(model, photos, output, "overlay=true")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_output_that_cannot_be_written_is_named(model, photos, tmp_path, monkeypatch, number):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path / "out/a.png"))

    monkeypatch.setattr(outputs, "_save", failing)
    if number == errno.EACCES:  # one file's business
        assert len(predicted(model, photos, tmp_path / "out")) == 3
        return
    with pytest.raises(Halt if number == errno.ENOSPC else UserError, match=r"a\.png can't be written"):
        predicted(model, photos, tmp_path / "out")
    with pytest.raises(UserError, match="is no folder"):
        predicted(model, photos, photos / "a.jpg/out")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00,\n", b"picture\n" + b"x" * 200_000 + b"\n"], ids=["bytes", "long"])
def test_a_table_that_is_none_is_refused(model, photos, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.csv (can't be read|is of another kind)"):
        predicted(model, photos, tmp_path / "out")


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("large", [False, True], ids=["png", "tif"])
def test_a_killed_run_leaves_no_half_file(photos, tmp_path, monkeypatch, large):
    monkeypatch.setattr(outputs, "LARGE", 0 if large else 10**9)
    into = Outputs(tmp_path / "out", ("dark", "bright"), overlay=True, probability=True, overwrite=False)
    path = photos / "a.jpg"

    def killed(picture):
        yield np.full((20, picture.width, 2), 0.5, np.float32)
        raise Killed

    with open_picture(path) as picture, pytest.raises(Killed):
        into.write(path, picture, killed)
    assert contents(tmp_path / "out").keys() == {"predictions.csv", "overlay/legend.png"}
    assert table(tmp_path / "out") == []
    with open_picture(path) as picture:
        into.write(path, picture, lambda picture: next(Predictor(Brightness()).bands([picture])))
    assert into.is_complete(path)


def test_a_folder_with_other_results_is_refused(model, photos, tmp_path):
    output = tmp_path / "out"
    predicted(model, photos / "a.jpg", output)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.bmp")
    with pytest.raises(UserError, match=r"mask of a\.jpg, and that of a\.bmp(.|\n)*output"):
        predicted(model, tmp_path / "a.bmp", output)
    (output / "predictions.csv").write_text("picture,mask,width,height,seconds,share_cat\n")
    with pytest.raises(UserError, match=r"share_cat\n  accepted: .*share_background"):
        predicted(model, photos / "a.jpg", output)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("checkpoint=nowhere.ckpt", "a checkpoint, a run folder, an exported file or a folder of save_pretrained"),
        ("images=nowhere", "a picture or a folder that exists, or a pattern"),
        ("images=empty", "holds no picture"),
        ("output=photos/a.jpg", "a folder, new or not"),
        ("output=photos", "holds the picture a.jpg, which a mask might replace"),
        ("images=twins", "a.bmp and twins/a.png would have masks of the same name, a"),
        ("tile=100", "multiple of 32"),
        ("overlap=-1", "overlap=-1"),
        ("accelerator=tpu", "auto, cpu or gpu"),
        ("overlays=true", "try: overlay"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(photos, tmp_path, monkeypatch, option, told):
    monkeypatch.chdir(tmp_path)
    Path("model.ckpt").touch()
    for folder in ("empty", "twins"):
        Path(folder).mkdir()
    for name in ("a.png", "a.bmp"):
        Path("twins", name).touch()
    given = ["checkpoint=model.ckpt", "images=photos", "output=out", option]
    with pytest.raises(UserError) as caught:
        door.check_files(compose("predict", Predict, given))
    assert told in str(caught.value)
    assert "accepted: " in str(caught.value)


def test_a_picture_may_not_have_the_overlay_of_the_legend(tmp_path):
    for name in ("Legend.tif", "model.ckpt"):
        (tmp_path / name).touch()
    given = [f"checkpoint={tmp_path}/model.ckpt", f"images={tmp_path}", f"output={tmp_path}/out"]
    door.check_files(compose("predict", Predict, given))
    with pytest.raises(UserError, match=r"Legend\.tif would have the overlay legend\.png"):
        door.check_files(compose("predict", Predict, [*given, "overlay=true"]))


def test_the_command_fails_within_two_seconds_without_a_traceback(tmp_path):
    done, seconds = timed("unetseg.predict", "checkpoint=nowhere", "images=.", "output=out", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("unetseg.predict: checkpoint=nowhere")
    assert "Traceback" not in done.stderr
    assert seconds < quick(), seconds


def test_importing_the_door_imports_nothing_heavy():
    code = "import sys, unetseg.predict; print([m for m in ('torch', 'cv2', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# Pictures that don't fit into memory


def write_stripes(path: Path, height: int, width: int) -> None:
    """Write a tiled TIFF whose rows are dark and bright in turns of 100."""
    rows = (np.full((1, width, 3), 255 * (y // 100 % 2), np.uint8) for y in range(height))
    tiff.write(path, rows, height, width)


@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (64, 48)},
        {"tile": (64, 48), "compression": "zlib"},
        {"rowsperstrip": 30, "compression": "zlib"},
        {"rowsperstrip": 7},
        {},
        {"bigtiff": True, "byteorder": ">"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rows_of_a_tiff_are_those_of_the_whole_picture(tmp_path, layout, dtype):
    image = RANDOM.integers(0, 256, (150, 131, 3)).astype(dtype)
    options = {key: value for key, value in layout.items() if key in ("bigtiff", "byteorder")}
    rest = {key: value for key, value in layout.items() if key not in options}
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **options, **rest)
    stored = tiff.TiffPicture(tmp_path / "a.tif")
    for start, stop in ((0, 150), (0, 1), (63, 65), (149, 150), (20, 129)):
        assert np.array_equal(stored.raw(start, stop), image[start:stop])
    stored.close()


def test_a_large_tiff_goes_through_by_windows_into_a_tiled_mask_and_overlay(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LARGE", 10_000)
    monkeypatch.setattr(outputs, "BAND", 100)  # a band ends where a class does
    path = tmp_path / "large.tif"
    write_stripes(path, 700, 600)
    model = Predictor(Brightness(), tile=128)
    classes = ("background", "bright")
    into = Outputs(tmp_path / "out", classes, overlay=True, probability=True, overwrite=False)
    with open_picture(path) as picture:
        into.write(path, picture, lambda picture: next(model.bands([picture])))
    mask = np.asarray(Image.open(tmp_path / "out/large.tif"))
    assert np.array_equal(mask, np.repeat(np.arange(700)[:, None] // 100 % 2, 600, axis=1))
    assert tifffile.TiffFile(tmp_path / "out/large.tif").pages[0].is_tiled
    assert np.load(tmp_path / "out/probability/large.npy").argmax(-1).sum() == mask.sum()
    drawn = tifffile.imread(tmp_path / "out/overlay/large.tif")
    assert np.array_equal(drawn, overlay(tifffile.imread(path), mask))
    assert into.is_complete(path)


def test_memory_grows_with_a_pictures_width_and_not_with_its_height(tmp_path):
    """20,000 x 20,000 pixels in 2.5 GB are 6 bytes a pixel; here it is less than one, and none of them stays."""

    def peak(height: int) -> int:
        write_stripes(tmp_path / "tall.tif", height, 256)
        model = Predictor(Brightness(), tile=128)
        tracemalloc.start()
        with open_picture(tmp_path / "tall.tif") as picture:
            bands = (argmax(band) for band in next(model.bands([picture])))
            tiff.write(tmp_path / "mask.tif", bands, picture.height, picture.width, class_colours())
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    small, large = peak(1_000), peak(20_000)
    assert large < 1.2 * small
    assert large < 20_000 * 256


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory) -> Path:
    """Return a model of one channel as stored."""
    given = ("data.channels=1", "data.mean=[100]", "data.std=[400]")
    return save_untrained(tmp_path_factory.mktemp("grey") / "model.ckpt", *given)


def volume(path: Path, axes: str = "RAS") -> np.ndarray:
    """Write a NIfTI volume whose axes run so; return it as slices x rows x columns, anterior above."""
    nibabel = pytest.importorskip("nibabel")
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff

    array = np.random.default_rng(0).integers(-900, 900, (40, 36, 5)).astype(np.int16)
    turn = nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) @ inv_ornt_aff(turn, array.shape)
    image = nibabel.Nifti1Image(apply_orientation(array, turn), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return array.transpose(2, 1, 0)[:, ::-1]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_gives_a_mask_on_its_own_grid(axes, ending, grey_model, tmp_path):
    import unetseg

    nibabel = pytest.importorskip("nibabel")
    path, output = tmp_path / f"scan{ending}", tmp_path / "out"
    slices = volume(path, axes)
    assert predicted(grey_model, path, output, "overlay=true", "probability=true") == []
    mask, source = nibabel.load(output / path.name), nibabel.load(path)
    np.testing.assert_allclose(mask.affine, source.affine)
    assert mask.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert mask.shape == source.shape
    segment = unetseg.load(grey_model)
    upright = np.asarray(nibabel.as_closest_canonical(mask).dataobj).transpose(2, 1, 0)[:, ::-1]
    assert np.array_equal(upright, [segment(plane) for plane in slices])
    assert np.array_equal(segment(path), upright)
    assert 0 < upright.mean() < 1
    assert np.load(output / "probability/scan.npy").shape == (5, 36, 40, 2)
    assert tifffile.imread(output / "overlay/scan.tif").shape == (5, 36, 40, 3)
    assert [row["picture"] for row in table(output)] == [path.name]
    before = contents(output)
    assert predicted(grey_model, tmp_path / f"*{ending}", output) == []
    changed = {name for name, time in contents(output).items() if before[name] != time}
    assert changed <= {"predictions.csv"}, "what is there is kept"


def test_a_stack_gives_a_stack(grey_model, tmp_path):
    import unetseg

    stack = np.random.default_rng(0).integers(0, 900, (4, 33, 40)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    assert predicted(grey_model, tmp_path / "stack.tif", tmp_path / "out", "overlay=true") == []
    segment = unetseg.load(grey_model)
    assert np.array_equal(tifffile.imread(tmp_path / "out/stack.tif"), [segment(plane) for plane in stack])
    assert tifffile.imread(tmp_path / "out/overlay/stack.tif").shape == (4, 33, 40, 3)


@pytest.fixture
def bands(tmp_path, monkeypatch) -> tuple[Path, np.ndarray, Path]:
    """Return a folder of a picture in two files, its values CxHxW, and a model of its two bands."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = save_untrained(tmp_path / "m.ckpt", "data.channels=2", "data.mean=[9,9]", "data.std=[9,9]")
    content = torch.load(model, weights_only=True)
    content["hyper_parameters"]["data"]["bands"] = ["B1", "B2"]
    torch.save(content, model)
    values = np.random.default_rng(0).integers(0, 20, (2, 33, 40)).astype(np.uint16)
    folder = tmp_path / "bands"
    folder.mkdir()
    for number, band in enumerate(values, start=1):
        tifffile.imwrite(folder / f"a_B{number}.tif", band)
    return folder, values, model


def test_the_files_of_channels_are_one_picture(bands, tmp_path, capsys):
    import unetseg

    folder, values, model = bands
    tifffile.imwrite(folder / "a_B0.tif", values[0])  # a band that the model doesn't know
    tifffile.imwrite(folder / "b_B1.tif", values[0])
    assert [path.name for path in predicted(model, f"{folder}/{{name}}_{{channel}}.tif", tmp_path / "out")] == [
        "b.channels"
    ]
    printed = capsys.readouterr()
    assert "channels of a picture, in this order: B1, B2" in printed.out
    assert "b has no file for B2" in " ".join(printed.err.split())
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/a.png")), unetseg.load(model)(values))
    assert [row["picture"] for row in table(tmp_path / "out")] == ["a.channels"]
    with pytest.raises(UserError, match="with both fields"):
        predicted(model, f"{folder}/{{channel}}.tif", tmp_path / "out")


def test_masks_among_the_files_of_channels_are_neither_taken_nor_replaced(bands, tmp_path):
    folder, _, model = bands
    pattern = f"{folder}/{{name}}_{{channel}}.tif"
    with pytest.raises(UserError, match="which a mask might replace"):
        predicted(model, pattern, folder, "overwrite=true")
    for _ in range(2):
        assert predicted(model, pattern, folder / "masks_x") == []
    assert [row["picture"] for row in table(folder / "masks_x")] == ["a.channels"]


@pytest.mark.parametrize("name", ["x.png", "x.nii"])
def test_a_file_of_the_user_in_a_masks_place_is_no_mask(name, grey_model, tmp_path, capsys):
    if name.endswith(".nii"):
        volume(tmp_path / name)
    else:
        Image.fromarray(RANDOM.integers(0, 9, (40, 36), dtype=np.uint8)).save(tmp_path / name)
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    assert predicted(grey_model, tmp_path / name, output) == [tmp_path / name]
    assert (output / name).read_text() == "mine"
    assert "is no mask of this picture" in " ".join(capsys.readouterr().err.split())
    assert table(output) == []


def test_a_folders_arrays_are_pictures(grey_model, tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "a.npy", RANDOM.random((33, 40), np.float32))
    assert predicted(grey_model, folder, tmp_path / "out") == []
    assert [row["picture"] for row in table(tmp_path / "out")] == ["a.npy"]
