"""A data set is looked at as a whole before the first step, once, and nothing ambiguous is trained on."""

import numpy as np
import pytest
from PIL import Image

from unetseg.data import survey as module
from unetseg.data.dataset import Collection
from unetseg.data.masks import MaskValues
from unetseg.data.sources import make_data
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train


@pytest.fixture(autouse=True)
def remembered(tmp_path, monkeypatch):
    """Keep what is remembered of masks apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def own(tmp_path):
    """A folder of twenty pictures, 8x10, whose masks have the values 0 and 1, in lists of 14, 3 and 3."""
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(20):
        Image.fromarray(np.full((8, 10, 3), number, np.uint8)).save(root / f"images/p{number:02}.png")
        mask(root, number, [[0, 1] * 5] * 8)
    for split, numbers in (("train", range(14)), ("val", range(14, 17)), ("test", range(17, 20))):
        (root / f"{split}.txt").write_text("".join(f"p{number:02}\n" for number in numbers))
    return root


def mask(root, number: int, values, mode: str | None = None, palette: list[int] | None = None) -> None:
    picture = Image.fromarray(np.array(values, np.uint8), mode)
    if palette:
        picture.putpalette(palette)
    (picture.convert("1") if mode == "bits" else picture).save(root / f"masks/p{number:02}.png")


def data(root, *overrides: str, **arguments):
    given = ["data=folder", f"data.root={root}", "data.size=32", "data.workers=0", "data.batch_size=4", *overrides]
    return make_data(compose("train", Train, given).data.model_dump(), 0, **arguments)


def checked(root, *overrides: str, **arguments):
    found = data(root, *overrides, **arguments)
    found.check()
    return found


def opened(monkeypatch) -> tuple[list[str], list[str]]:
    """Return two lists that get the names of the masks, and of the pictures, that are opened from now on."""
    read, looked = [], []
    raw, size = module.read_raw_mask, module.image_size
    monkeypatch.setattr(module, "read_raw_mask", lambda path, values: read.append(path.name) or raw(path, values))
    monkeypatch.setattr(module, "image_size", lambda path, view: looked.append(path.name) or size(path, view))
    return read, looked


def unlisted(root):
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").unlink()
    return root


# What is read


@pytest.mark.parametrize("number", [0, 15, 19])
def test_a_bad_value_in_any_split_is_named_before_training(own, number):
    mask(own, number, np.full((8, 10), 7))
    with pytest.raises(UserError, match=rf"p{number:02}\.png has the value 7\n  accepted: 0, 1, 255"):
        checked(own)
    data(own, "data.check=headers").check()


def test_headers_alone_find_sizes_and_none_finds_nothing(own):
    mask(own, 3, [[0]])
    for how in ("full", "headers"):
        with pytest.raises(UserError, match=r"p03\.png is 1x1, its picture .* 10x8"):
            checked(own, f"data.check={how}")
    checked(own, "data.check=none")


def test_a_second_start_opens_no_file_and_a_changed_one_is_read(own, monkeypatch):
    first = checked(own).survey
    read, looked = opened(monkeypatch)
    again = checked(own).survey
    assert read == looked == []
    for split in ("train", "val", "test"):
        assert np.array_equal(first.sizes[split], again.sizes[split])
        for one, other in zip(*(vars(found.masks[split]).values() for found in (first, again)), strict=True):
            assert np.array_equal(one, other)
    mask(own, 19, np.full((8, 10), 9))
    with pytest.raises(UserError, match=r"p19\.png has the value 9"):
        checked(own)
    assert (read, looked) == (["p19.png"], ["p19.png"])


def test_a_picture_that_changed_beside_its_mask_is_looked_at_again(own):
    checked(own)
    Image.new("RGB", (11, 8)).save(own / "images/p04.png")
    with pytest.raises(UserError, match=r"p04\.png is 10x8, its picture .* 11x8"):
        checked(own)


def test_of_a_set_that_grows_or_shrinks_only_what_is_new_is_read(own, monkeypatch):
    read, looked = opened(monkeypatch)
    (own / "val.txt").write_text("p15")
    checked(own)
    assert (len(read), len(looked)) == (18, 18)
    (own / "val.txt").write_text("p15\np16")
    checked(own)
    assert (read[18:], looked[18:]) == (["p16.png"], ["p16.png"])
    for names in ("p15", "p16\np15"):
        (own / "val.txt").write_text(names)
        found = checked(own)
    assert len(read) == len(looked) == 19
    assert [example.image.name for example in found.collection.splits["val"]] == ["p16.png", "p15.png"]


def test_lists_of_one_folder_are_kept_apart_and_not_for_ever(own, monkeypatch, tmp_path):
    read, _ = opened(monkeypatch)
    (own / "masks/p17.png").unlink()
    mask(own, 17, np.full((8, 10), 255))  # beside 0 and 1 in the others
    for number in range(6):
        (own / "val.txt").write_text(f"p{14 + number % 3}")
        checked(own, "data.ignore_index=255")
    assert len(read) == 20
    stores = [*(tmp_path / "cache/unetseg").glob("*.survey.npz")]
    assert len(stores) == 2 * 3
    for number in range(6):
        (own / "train.txt").write_text("\n".join(f"p{position:02}" for position in range(3 + number)))
        checked(own, "data.ignore_index=255")
    assert len([*(tmp_path / "cache/unetseg").glob("*.survey.npz")]) == 2 * 4


def test_what_is_kept_of_fewer_items_than_it_says_is_not_used(own, tmp_path):
    found = checked(own).survey
    for path in (tmp_path / "cache/unetseg").glob("*.survey.npz"):
        with np.load(path) as file:
            columns = {name: file[name] for name in file.files}
        columns["entries"] = columns["entries"][::-1][:12]
        np.savez(path, **columns)
    again = checked(own).survey
    for split, sizes in found.sizes.items():
        assert np.array_equal(again.sizes[split], sizes)
        assert np.array_equal(again.masks[split].pixels, found.masks[split].pixels)


def test_a_start_that_ends_early_keeps_what_it_has_read(own, monkeypatch):
    read, looked = opened(monkeypatch)
    Image.new("L", (11, 8)).save(own / "masks/p19.png")
    with pytest.raises(UserError, match=r"p19\.png is 11x8"):
        checked(own)
    mask(own, 19, np.zeros((8, 10)))
    checked(own)
    assert (len(read), len(looked), looked[20:]) == (20, 21, ["p19.png"])


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut short", None])
def test_a_damaged_memory_is_made_anew(own, content, tmp_path, capsys):
    checked(own)
    stores = [*(tmp_path / "cache/unetseg").glob("*.survey.npz")]
    assert len(stores) == 2  # of the sizes and of the masks
    for kept in stores:
        kept.write_bytes(kept.read_bytes()[:400] if content is None else content)
    first = capsys.readouterr().out
    checked(own)
    assert capsys.readouterr().out == first
    assert all(kept.stat().st_size > 500 for kept in stores)


def test_the_table_says_what_there_is(own, capsys):
    mask(own, 17, np.zeros((8, 10)))
    checked(own)
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "pictures 14 3 3" in lines
    assert "width 10 10 10" in lines
    assert "foreground 50.00% in 14 50.00% in 3 33.33% in 2" in lines
    assert not any("ignored" in line for line in lines)


def test_absent_classes_and_splits_of_one_picture_are_said(own, capsys):
    (own / "val.txt").write_text("p15")
    checked(own, "data.classes=[sky,tree,road]")
    said = capsys.readouterr().out
    assert "the val split has one picture only" in said
    assert "no mask of the train split has road" in said


def test_evaluation_needs_no_other_split(own):
    for name in ("train", "val"):
        (own / f"{name}.txt").unlink()
    found = checked(own, test_split="test")
    assert list(found.collection.splits) == ["test"]
    drawn = checked(own)
    assert {split: len(part) for split, part in drawn.collection.splits.items()} == {"train": 14, "val": 3, "test": 3}
    (own / "test.txt").unlink()
    assert len(checked(own, test_split="all").collection.splits["all"]) == 20


# Which is meant


def test_two_files_of_one_name_are_refused_unless_a_list_names_one(own):
    Image.new("RGB", (10, 8), "white").save(own / "images/p00.bmp")
    with pytest.raises(UserError, match=r"p00\.bmp and .*p00\.png have the same name"):
        checked(own)
    (own / "train.txt").write_text("p00.bmp\np01\n")
    assert checked(own).collection.splits["train"][0].image.name == "p00.bmp"
    (own / "train.txt").write_text("p00.png\np01\n")
    assert checked(own).collection.splits["train"][0].image.name == "p00.png"
    Image.new("L", (10, 8)).save(own / "masks/p00.tif")
    with pytest.raises(UserError, match=r"masks/p00\.png and .*masks/p00\.tif"):
        checked(own)


def test_a_list_takes_no_other_ending_than_it_names(own):
    (own / "train.txt").write_text("p00.jpg\np01\n")
    with pytest.raises(UserError, match=r"p00\.jpg does not exist, but train\.txt lists it; .*images holds p00\.png"):
        checked(own)
    (own / "train.txt").write_text("p00.PNG\np01\n")
    assert checked(own).collection.splits["train"][0].image.name == "p00.png"


@pytest.mark.parametrize("end", ["PNG", "tif", "bmp", "gif"])
def test_masks_and_pictures_may_have_any_ending(own, end):
    for part in ("images", "masks"):
        for path in list((own / part).iterdir()):
            Image.open(path).save(path.with_suffix(f".{end}"), end.replace("tif", "TIFF").upper())
            if end != "PNG" or path.suffix != ".PNG":
                path.unlink()
    assert len(checked(own).collection.splits["train"]) == 14


def test_what_macos_and_windows_leave_is_no_picture(own):
    unlisted(own)
    for name in ("._p00.png", ".hidden.jpg", "Thumbs.db"):
        (own / "images" / name).write_bytes(b"\0\5\x16\7")
    assert sum(map(len, checked(own).collection.splits.values())) == 20


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16", "utf-8"])
def test_lists_are_read_as_windows_writes_them(own, code):
    (own / "train.txt").write_bytes("p00\r\np01.png\r\n\r\n".encode(code))
    assert [e.name for e in checked(own).collection.splits["train"]] == ["p00", "p01"]


def test_a_list_in_another_encoding_is_named(own):
    for content in ("p00\nKätzchen\n".encode("latin-1"), "p00\n".encode("utf-16-le")):
        (own / "train.txt").write_bytes(content)
        with pytest.raises(UserError, match=r"train\.txt is in an unknown encoding\n  accepted: UTF-8"):
            checked(own)


def test_folders_below_images_are_used_with_those_below_masks(own):
    unlisted(own)
    for part in ("images", "masks"):
        (own / part / "b").mkdir()
        (own / part / "p00.png").rename(own / part / "b/p00.png")
    every = [example for split in checked(own).collection.splits.values() for example in split]
    assert len(every) == 20
    (moved,) = [example for example in every if example.name == "b/p00"]
    assert moved.mask == own / "masks/b/p00.png"


@pytest.mark.parametrize(
    "line", ["b/p00", "b/p00.png", "images/b/p00.png", "./images/b/p00.png", "images/b/p00.png masks/b/p00.png"]
)
def test_lists_may_name_folders(own, line):
    for part in ("images", "masks"):
        (own / part / "b").mkdir()
        (own / part / "p00.png").rename(own / part / "b/p00.png")
    (own / "train.txt").write_text(f"{line}\np01\n")
    first = checked(own).collection.splits["train"][0]
    assert (first.name, first.image, first.mask) == ("b/p00", own / "images/b/p00.png", own / "masks/b/p00.png")


def test_a_list_with_flags_is_read_where_all_are_1(own):
    before = [example.name for example in checked(own).collection.splits["train"]]
    lines = (own / "train.txt").read_text().split()
    (own / "train.txt").write_text("".join(f"{line}  1\n" for line in lines))
    assert [example.name for example in checked(own).collection.splits["train"]] == before
    (own / "train.txt").write_text("p00  1\np01 -1\n")
    with pytest.raises(UserError, match="line 'p01 -1', whose second column is no mask"):
        checked(own)


def test_pictures_without_masks_are_counted_and_what_lies_there_is_said(own):
    unlisted(own)
    for number in (3, 4):
        (own / f"masks/p{number:02}.png").rename(own / f"masks/p{number:02}_mask.png")
    with pytest.raises(UserError, match=r"2 of 20 pictures have no mask .*: p03, p04; .*masks holds p") as caught:
        checked(own)
    assert "list" not in str(caught.value).splitlines()[0]


def test_an_empty_split_says_what_is_accepted_and_what_lies_there(own):
    unlisted(own)
    for path in (own / "images").iterdir():
        path.rename(path.with_suffix(".mat"))
    with pytest.raises(UserError, match=r"0 pictures, besides files that end in \.mat\)\n.*\.jpg, .*\.avif"):
        checked(own)


def test_masks_with_0_and_1_and_255_are_refused_in_one_file_or_two(own):
    mask(own, 5, [[0, 255] * 5] * 8)
    with pytest.raises(UserError, match=r"p00\.png has the value 1, .*p05\.png the value 255: which is the foreground"):
        checked(own)
    checked(own, "data.ignore_index=255")


def test_masks_of_one_bit_beside_an_ignored_255_are_refused(own):
    mask(own, 5, [[0, 255] * 5] * 8)
    picture = Image.open(own / "masks/p06.png").point(lambda value: 255 * value).convert("1")
    picture.save(own / "masks/p06.png")
    with pytest.raises(UserError, match=r"p06\.png has one bit a pixel, .*p05\.png eight"):
        checked(own, "data.ignore_index=255")


def test_palettes_in_another_order_are_refused_and_longer_ones_are_not(own):
    for number in range(20):
        mask(own, number, [[0, 1] * 5] * 8, "P", [0, 0, 0, 128, 0, 0])
    mask(own, 4, [[0, 1] * 5] * 8, "P", [0, 0, 0, 128, 0, 0, 0, 128, 0])
    checked(own)
    mask(own, 5, [[1, 0] * 5] * 8, "P", [128, 0, 0, 0, 0, 0])
    with pytest.raises(UserError, match=r"palettes of the masks differ: .*p05\.png"):
        checked(own)


def test_anti_aliased_masks_are_told_of_a_threshold(own):
    mask(own, 5, np.arange(80).reshape(8, 10) * 3)
    with pytest.raises(UserError, match=r"data\.threshold=127"):
        checked(own)


# Batches of one


@pytest.mark.parametrize(("pictures", "batch", "batches"), [(13, 4, 3), (5, 4, 1), (14, 4, 4), (12, 4, 3)])
def test_a_last_batch_of_one_sits_out_and_that_is_said(own, pictures, batch, batches, capsys):
    (own / "train.txt").write_text("".join(f"p{number:02}\n" for number in range(pictures)))
    loader = checked(own, f"data.batch_size={batch}").train_dataloader()
    assert len(loader) == len(list(loader)) == batches
    assert ("one sits out" in capsys.readouterr().out) == (pictures % batch == 1)
    assert len(checked(own, batch_normalisation=False).train_dataloader()) == -(-pictures // 4)


def test_batches_of_one_value_a_channel_are_refused_at_the_start(own):
    with pytest.raises(UserError, match=r"14 training pictures in batches of 1 at data\.size=32"):
        checked(own, "data.batch_size=1")
    checked(own, "data.batch_size=1", "data.size=64")
    (own / "train.txt").write_text("p00\n")
    with pytest.raises(UserError, match="1 training pictures"):
        checked(own)
    assert len(checked(own, "data.size=64").train_dataloader()) == 1


def test_no_pair_of_masks_is_compared_where_there_is_none():
    empty = Collection(("a", "b"), MaskValues(np.zeros(256, np.uint8)), {"train": [], "val": [], "test": []})
    assert all(len(masks) == 0 for masks in module.survey(empty, "full").masks.values())
