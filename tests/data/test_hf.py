"""Data sets of the Hugging Face hub: tested on local ones that the library itself writes."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from unetseg import huggingface
from unetseg.data import hf
from unetseg.data.masks import read_mask
from unetseg.data.pictures import read_image
from unetseg.data.sources import make_data
from unetseg.errors import UserError
from unetseg.huggingface import Source
from unetseg.options import data_file
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training import preflight

NO_MODEL = ("data=hf", "data.size=64", "data.workers=0", "model.weights=null", "trainer.accelerator=cpu")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Keep what is kept in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "datasets" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library, with caches of the test's own and no progress bars."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    return datasets


def picture(number: int) -> tuple[Image.Image, np.ndarray]:
    """Return a picture and the classes of its pixels, 40x48, of 0 and 1."""
    pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    classes = np.zeros((40, 48), np.uint8)
    classes[:, : 10 + number] = 1
    return Image.fromarray(pixels), classes


def png(image: Image.Image) -> dict:
    file = io.BytesIO()
    image.save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def each(rows):
    yield from rows


def write_split(root, library, split, rows, features):
    """Write rows as Parquet. (Not by from_dict: the library can't make its fingerprint with the newest pyarrow.)"""
    of_rows = library.Dataset.from_generator(
        each, gen_kwargs={"rows": rows}, features=features, cache_dir=str(root.with_name(f"{root.name}_{split}"))
    )
    of_rows.to_parquet(f"{root}/data/{split}-00000-of-00001.parquet")


def parquet(root, library, sizes, mask=None, **columns):
    """Write a data set of several splits as Parquet; `mask` maps the classes to what the column holds."""
    kinds = {"image": library.Image(), "mask": mask[1] if mask else library.Image()}
    features = library.Features(kinds | {name: kind for name, (kind, _) in columns.items()})
    (root / "data").mkdir(parents=True)
    for split, size in sizes.items():
        rows = []
        for number in range(size):
            image, classes = picture(number)
            row = {"image": png(image), "mask": mask[0](classes) if mask else png(Image.fromarray(classes))}
            rows.append(row | {name: value(number) for name, (_, value) in columns.items()})
        write_split(root, library, split, rows, features)
    return root


def options(root, *more):
    return compose("train", Train, [*NO_MODEL, f"data.root={root}", *more])


def checked(root, *more):
    """Return the collection of a data set, after the checks that come before a training."""
    data = make_data(options(root, *more).data.model_dump(), seed=0)
    data.check()
    return data.collection


def test_pictures_and_masks_are_read_as_they_were_written(tmp_path, library):
    root = parquet(tmp_path / "set", library, {"train": 4, "validation": 2, "test": 3})
    collection = checked(root)
    assert {split: len(examples) for split, examples in collection.splits.items()} == {"train": 4, "val": 2, "test": 3}
    assert collection.classes == ("background", "foreground")
    example = collection.splits["test"][2]
    image, classes = picture(2)
    assert example.name == "test_000002"
    np.testing.assert_array_equal(read_image(example.image), np.asarray(image))
    np.testing.assert_array_equal(read_mask(example.mask, collection.values), classes)


def test_splits_that_the_set_lacks_are_drawn(tmp_path, library):
    root = parquet(tmp_path / "set", library, {"train": 20})
    assert {s: len(e) for s, e in checked(root).splits.items()} == {"train": 14, "val": 3, "test": 3}
    folds = [checked(root, "data.folds=4", f"data.fold={fold}") for fold in range(4)]
    tested = [example.name for fold in folds for example in fold.splits["test"]]
    assert sorted(tested) == [f"train_{number:06d}" for number in range(20)]


def test_the_names_of_classes_are_those_of_the_masks_own_column(tmp_path, library):
    names = ["sky", "road", "car"]
    column = library.List(library.List(library.ClassLabel(names=names)))
    scene = library.ClassLabel(names=["town", "country"])
    root = parquet(
        tmp_path / "set",
        library,
        {"train": 6, "test": 2},
        (lambda classes: (2 * classes.astype(int)).tolist(), column),
        scene=(scene, lambda number: number % 2),
    )
    assert options(root).data.classes == names
    collection = checked(root)
    assert collection.classes == ("sky", "road", "car")
    assert set(np.unique(read_mask(collection.splits["test"][0].mask, collection.values))) == {0, 2}
    assert options(root, "data.classes=[a,b,c]").data.classes == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"the masks have 3 classes, sky, road, car"):
        checked(root, "data.classes=[a,b]")


def test_values_that_need_more_than_eight_bits_are_kept(tmp_path, library):
    column = library.Array2D(shape=(40, 48), dtype="int32")
    root = parquet(tmp_path / "set", library, {"train": 8}, (lambda c: c.astype(np.int32) * 1000 - 1, column))
    collection = checked(root, "data.values={land:999,ignore:-1,sea:5}")
    assert collection.splits["train"][0].mask.suffix == ".npy"


def test_pictures_of_a_group_stay_together(tmp_path, library):
    patient = (library.Value("string"), lambda number: f"p_{number // 3}/ä")
    root = parquet(tmp_path / "set", library, {"train": 18}, patient=patient)
    collection = checked(root, "data.group=patient")
    groups = {split: {example.group for example in examples} for split, examples in collection.splits.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 6
    with pytest.raises(UserError, match="has no column scanner"):
        checked(root, "data.group=scanner")


def test_folders_that_the_library_saved_and_pictures_with_metadata_are_opened(tmp_path, library):
    opened = Source(str(parquet(tmp_path / "set", library, {"train": 3, "test": 2}))).open()
    library.DatasetDict(opened).save_to_disk(tmp_path / "saved")
    assert {s: len(e) for s, e in Source(str(tmp_path / "saved")).open().items()} == {"train": 3, "test": 2}
    root = tmp_path / "pictures"
    root.mkdir()
    lines = []
    for number in range(10):
        image, classes = picture(number)
        image.save(root / f"p{number}.jpg")
        Image.fromarray(classes).save(root / f"m{number}.png")
        lines.append(json.dumps({"file_name": f"p{number}.jpg", "annotation_file_name": f"m{number}.png"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    collection = checked(root)
    example = collection.splits["train"][0]
    assert example.image.read_bytes() in {path.read_bytes() for path in root.glob("*.jpg")}  # no second compression


def test_rows_without_a_mask_and_unknown_splits_are_told(tmp_path, library, capsys):
    root = parquet(tmp_path / "set", library, {"train": 8, "unlabeled": 2})
    rows = [
        {"image": png(picture(n)[0]), "mask": png(Image.fromarray(picture(n)[1])) if n != 3 else None} for n in range(8)
    ]
    write_split(root, library, "train", rows, library.Features(image=library.Image(), mask=library.Image()))
    checked(root)
    printed = capsys.readouterr().out
    assert "left out, without a mask: 1 picture of train" in printed
    assert "not used: the split unlabeled" in printed


def damaged(root, library, column, value, kind):
    """Write a data set whose second row holds something else in one column."""
    rows = [{"image": png(picture(n)[0]), "mask": png(Image.fromarray(picture(n)[1]))} for n in range(3)]
    if kind is not None:
        for row in rows:
            row[column] = [[0, 1], [1, 0]]
    rows[1][column] = value
    kinds = {"image": library.Image(), "mask": library.Image()} | ({column: kind} if kind is not None else {})
    (root / "data").mkdir(parents=True)
    write_split(root, library, "train", rows, library.Features(kinds))
    return root


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("image", None, "holds no picture"),
        ("image", {"bytes": b"no picture", "path": None}, "holds no picture that can be read"),
        ("mask", {"bytes": b"", "path": "gone.png"}, "holds no picture"),
        ("mask", [[0, 1], [1]], "is no HxW table of whole numbers"),
    ],
    ids=["no picture", "no picture's bytes", "a mask that is gone", "rows of two lengths"],
)
def test_a_row_that_holds_no_picture_or_no_mask_is_named(tmp_path, library, column, value, said):
    table = library.List(library.List(library.Value("int64"))) if isinstance(value, list) else None
    root = damaged(tmp_path / "set", library, column, value, table)
    with pytest.raises(UserError, match=f"row 1 of train in .*{said}"):
        hf.keep(Source(str(root)))
    cache = tmp_path / "cache"
    assert [path for path in cache.rglob("*") if path.suffix in (".png", ".jpg")] == [], "a draft stays"


def test_splits_that_are_called_otherwise_are_refused(tmp_path, library):
    root = parquet(tmp_path / "set", library, {"unlabeled": 2})
    with pytest.raises(UserError, match=r"has the splits unlabeled(?s:.)*train, val or test"):
        hf.keep(Source(str(root)))


def test_nothing_is_kept_where_others_could_write(tmp_path, library):
    source = Source(str(parquet(tmp_path / "set", library, {"train": 2})))
    source.folder.parent.mkdir(parents=True)
    source.folder.parent.chmod(0o777)
    with pytest.raises(UserError, match=r"is open to others(?s:.)*XDG_CACHE_HOME=FOLDER"):
        hf.keep(source)
    assert [*source.folder.parent.iterdir()] == []


def test_a_cache_that_can_not_be_written_is_named(tmp_path, library):
    source = Source(str(parquet(tmp_path / "set", library, {"train": 2})))
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"can't be kept in .*(?s:.)*XDG_CACHE_HOME=FOLDER"):
        hf.keep(source)


def test_of_two_processes_the_first_one_stays(tmp_path, library, monkeypatch):
    source = Source(str(parquet(tmp_path / "set", library, {"train": 2})))
    write = hf._write

    def late(*args):
        notes = write(*args)
        source.folder.mkdir(parents=True)
        (source.folder / "first.txt").write_text("")
        return notes

    monkeypatch.setattr(hf, "_write", late)
    folder = hf.keep(source)
    assert [path.name for path in folder.iterdir()] == ["first.txt"]
    assert [*folder.parent.iterdir()] == [folder]


def test_the_set_is_opened_once_and_again_where_its_files_change(tmp_path, library, monkeypatch):
    root = parquet(tmp_path / "set", library, {"train": 8})
    source = Source(str(root))
    first = hf.keep(source)
    monkeypatch.setattr(Source, "open", lambda self: pytest.fail("opened again"))
    assert hf.keep(source) == first
    assert source.class_names() is None
    (root / "more.txt").write_text("")
    assert source.folder != first
    assert [path for path in first.parent.iterdir() if path.name.startswith(".draft")] == []


def test_columns_that_can_not_be_told_apart_are_listed(tmp_path, library):
    features = {name: library.Image() for name in ("image", "mask_a", "mask_b")}
    source = Source("set")
    with pytest.raises(UserError, match=r"no column is surely the .*(?s:.)*mask_a \(Image\), mask_b \(Image\)"):
        source.columns(features)
    assert Source("set", image="image", mask="mask_b").columns(features) == ("image", "mask_b")
    with pytest.raises(UserError, match=r"data\.mask=msk is no column for it"):
        Source("set", mask="msk").columns(features)
    both = {"pixels": library.Image(), "label": library.Image(), "scene_label": library.ClassLabel(names=["a", "b"])}
    assert source.columns(both) == ("pixels", "label")


# What needs no library


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unetseg\[hf\]'"):
        Source(str(tmp_path)).open()
    with pytest.raises(UserError, match=r"pip install 'unetseg\[hf\]'"):
        preflight.train(options(tmp_path, "data.classes=[a,b]"))


def test_without_a_network_a_name_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(huggingface, "find_spec", lambda name: object())
    monkeypatch.setattr(huggingface, "answers", lambda address: False)
    with pytest.raises(UserError, match=r"owner/name is no folder, and can't be downloaded \(HF_HUB_OFFLINE is set\)"):
        preflight.train(options("owner/name", "data.classes=[a,b]"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(UserError, match=r"\(no network\)"):
        Source("owner/name").check()


@pytest.mark.parametrize("root", ["/no/folder", "https://example.org/set", "../set", "a/b/c"])
def test_what_is_neither_a_name_nor_a_folder_is_refused(root):
    with pytest.raises(UserError, match="NAME or OWNER/NAME, or a folder that exists"):
        options(root, "data.classes=[a,b]")


def test_classes_that_are_given_or_recorded_open_nothing(monkeypatch):
    monkeypatch.setattr(Source, "class_names", lambda self: pytest.fail("opened"))
    data = {"name": "hf", "root": "owner/name", "classes": ["a", "b"], "values": None}
    assert data_file.complete(data) == data
    assert data_file.complete(data | {"classes": None, "values": {"a": 0, "b": 7}})["classes"] == ["a", "b"]
