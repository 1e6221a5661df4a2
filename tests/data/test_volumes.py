"""Volumes: their slices are the pictures."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetseg.data.masks import read_mask
from unetseg.data.pictures import read_image
from unetseg.data.sources import make_data
from unetseg.data.view import View
from unetseg.data.volumes import Volume, has_slices
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train

nibabel = pytest.importorskip("nibabel")


def data_of(root, *overrides: str):
    options = compose(
        "train", Train, ["data=folder", f"data.root={root}", "data.size=32", "data.workers=0", *overrides]
    )
    data = make_data(options.data.model_dump(), 0)
    data.check()
    return data


def volumes(root, count: int, shape=(20, 24, 9), ending: str = ".nii.gz") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write volumes of 16 bits with masks, and return both as slices x rows x columns."""
    rng, written = np.random.default_rng(0), {}
    for number in range(count):
        image = rng.integers(-1000, 1000, shape).astype(np.int16)
        mask = (image > 300).astype(np.uint8)
        for kind, array in (("ct", image), ("seg", mask)):
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(root / f"p{number}_{kind}{ending}")
        written[f"p{number}"] = tuple(array.transpose(2, 1, 0)[:, ::-1] for array in (image, mask))
    (root / "data.yaml").write_text(
        f'images: "{{name}}_ct{ending}"\nmasks: "{{name}}_seg{ending}"\nrange: [-150, 250]\n'
    )
    return written


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_each_slice_of_a_nifti_is_a_picture_as_it_is_stored(tmp_path, ending):
    written = volumes(tmp_path, 3, ending=ending)
    data = data_of(tmp_path)
    examples = [example for split in data.collection.splits.values() for example in split]
    assert len(examples) == 27
    for example in examples:
        name, number = example.name.split("_slice")
        image, mask = (array[int(number)] for array in written[name])
        assert np.array_equal(read_image(example.image, View(channels=1))[..., 0], image)
        assert np.array_equal(read_mask(example.mask, data.collection.values), mask)
    by_split = [{e.group for e in examples} for examples in data.collection.splits.values()]
    assert not by_split[0] & by_split[1], "a volume lies in one split"
    assert sum(map(len, by_split)) == 3


def test_one_volume_is_divided_and_the_user_is_told(tmp_path):
    volumes(tmp_path, 1)
    data = data_of(tmp_path)
    assert sum(map(len, data.collection.splits.values())) == 9
    assert any("slices of one volume are in several splits" in note for note in data.collection.notes)


def test_a_stack_of_16_bits_is_its_pages(tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 65536, (12, 30, 34)).astype(np.uint16)
    labels = ((stack > 30000) * 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "train-volume.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train-labels.tif", labels, photometric="minisblack")
    (tmp_path / "data.yaml").write_text('images: "{name}-volume.tif"\nmasks: "{name}-labels.tif"\n')
    data = data_of(tmp_path)
    examples = {e.name: e for split in data.collection.splits.values() for e in split}
    assert len(examples) == 12
    example = examples["train_slice007"]
    assert np.array_equal(read_image(example.image, View(channels=1))[..., 0], stack[7])
    assert np.array_equal(read_mask(example.mask, data.collection.values), labels[7] > 0)


def test_a_stack_in_colours_is_its_pages_without_a_data_yaml(tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 256, (12, 30, 34, 3)).astype(np.uint8)
    for part, array in (("images", stack), ("masks", (stack[..., 0] > 99).astype(np.uint8))):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "volume.tif", array, photometric="rgb" if array.ndim == 4 else "minisblack")
    examples = {e.name: e for split in data_of(tmp_path).collection.splits.values() for e in split}
    assert np.array_equal(read_image(examples["volume_slice003"].image), stack[3])


def test_names_of_compressed_volumes_are_paired_without_a_data_yaml(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        nibabel.Nifti1Image(np.arange(720).reshape(8, 9, 10).astype(np.int16) % 2, np.eye(4)).to_filename(
            tmp_path / part / "p.1.nii.gz"
        )
    data = data_of(tmp_path, "data.range=[0,1]")
    assert sum(map(len, data.collection.splits.values())) == 10


def test_a_mask_that_does_not_say_how_it_lies_is_refused(tmp_path):
    volumes(tmp_path, 1)
    Image.fromarray(np.zeros((24, 20), np.uint8)).save(tmp_path / "p0_seg.png")
    (tmp_path / "data.yaml").write_text('images: "{name}_ct.nii.gz"\nmasks: "{name}_seg.png"\n')
    with pytest.raises(UserError, match="doesn't say how it lies"):
        data_of(tmp_path)


def test_stacks_of_one_page_and_of_several_are_all_cut(tmp_path):
    for number, pages in enumerate([1, 4, 3]):
        stack = np.zeros((pages, 16, 20), np.uint16)
        for kind, array in (("volume", stack), ("labels", stack.astype(np.uint8))):
            array = array[0] if pages == 1 else array
            tifffile.imwrite(tmp_path / f"{number}-{kind}.tif", array, photometric="minisblack")
    (tmp_path / "data.yaml").write_text('images: "{name}-volume.tif"\nmasks: "{name}-labels.tif"\n')
    assert sum(map(len, data_of(tmp_path).collection.splits.values())) == 8


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.uint16])
def test_masks_of_any_type_of_whole_numbers_are_read(kind, tmp_path):
    volumes(tmp_path, 1)
    mask = np.asarray(nibabel.load(tmp_path / "p0_seg.nii.gz").dataobj).astype(kind)
    nibabel.Nifti1Image(mask[..., None], np.eye(4), dtype=kind).to_filename(tmp_path / "p0_seg.nii.gz")
    assert sum(map(len, data_of(tmp_path).collection.splits.values())) == 9


def test_a_volume_that_its_mask_does_not_fit_is_refused(tmp_path):
    volumes(tmp_path, 1)
    nibabel.Nifti1Image(np.zeros((20, 24, 8), np.uint8), np.eye(4)).to_filename(tmp_path / "p0_seg.nii.gz")
    with pytest.raises(UserError, match=r"p0_seg.nii.gz has the shape \(8, 24, 20\), its volume .* \(9, 24, 20\)"):
        data_of(tmp_path)


def test_a_volume_that_lies_elsewhere_in_the_body_than_its_mask_is_refused(tmp_path):
    volumes(tmp_path, 1)
    moved = np.diag([1.0, 1.0, 2.0, 1.0])
    nibabel.Nifti1Image(np.zeros((20, 24, 9), np.uint8), moved).to_filename(tmp_path / "p0_seg.nii.gz")
    with pytest.raises(UserError, match="lies elsewhere"):
        data_of(tmp_path)


def test_damaged_volumes_are_named(tmp_path):
    volumes(tmp_path, 1, ending=".nii")
    file = tmp_path / "p0_ct.nii"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"p0_ct.nii can't be read as a volume"):
        data_of(tmp_path)


def test_pages_of_another_meaning_are_refused(tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (5, 20, 24)).astype(np.uint8)
    turned = [(274, "H", 1, 6, True)]
    for name, options, said in (
        ("white", {"photometric": "miniswhite"}, "its 0 is white"),
        ("turned", {"photometric": "minisblack", "extratags": turned}, "turned by a tag"),
        ("palette", {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "table of colours"),
    ):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, **options)
        assert has_slices(tmp_path / f"{name}.tif", View())
        with pytest.raises(UserError, match=said):
            Volume(tmp_path / f"{name}.tif", View())


def test_channels_of_imagej_are_no_slices_and_three_pages_are(tmp_path):
    pages = np.zeros((3, 20, 24), np.uint8)
    tifffile.imwrite(tmp_path / "channels.tif", pages[:2], imagej=True, metadata={"axes": "CYX"})
    assert not has_slices(tmp_path / "channels.tif", View())
    tifffile.imwrite(tmp_path / "three.tif", pages, photometric="minisblack")
    assert has_slices(tmp_path / "three.tif", View())
    assert has_slices(tmp_path / "three.tif", View(channels=1))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_nifti_of_8_or_16_bits_is_read_like_a_tiff_of_them(kind, tmp_path):
    stack = np.random.default_rng(0).integers(0, 200, (4, 20, 24)).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    nibabel.Nifti1Image(stack[:, ::-1].transpose(2, 1, 0), np.eye(4)).to_filename(tmp_path / "a.nii")
    for view in (View(), View(value_range=(0, 100)), View(channels=1)):
        first, second = (
            [picture.rows(0, 20) for picture in Volume(tmp_path / name, view)] for name in ("a.tif", "a.nii")
        )
        assert np.array_equal(first, second)


def test_an_error_names_a_slice_by_its_volume(tmp_path):
    volumes(tmp_path, 3)
    mask = np.zeros((24, 20, 9), np.uint8)
    mask[3, 3, 4] = 7
    nibabel.Nifti1Image(mask.transpose(1, 0, 2), np.eye(4)).to_filename(tmp_path / "p1_seg.nii.gz")
    with pytest.raises(UserError, match=r"mask_p1_seg_slice00004.tif"):
        data_of(tmp_path)
