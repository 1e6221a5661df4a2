"""The Pets layout: official split, what a trimap's values mean, and errors that name the file."""

import shutil

import numpy as np
import pytest
from PIL import Image

from unetseg.data import pets
from unetseg.data.masks import read_mask
from unetseg.data.pictures import read_image
from unetseg.data.sources import find
from unetseg.data.survey import survey
from unetseg.errors import UserError
from unetseg.names import IGNORE
from unetseg.options.compose import compose
from unetseg.options.schema import Train


def options(*overrides: str):
    return compose("train", Train, ["data=synthetic", *overrides]).data


@pytest.fixture
def layout(tmp_path):
    """A set of 40 pictures of three breeds, 24 pixels high and 32 wide."""
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/trimaps").mkdir(parents=True)
    names = [f"{breed}_{i}" for breed in ("Big_Cat", "dog", "owl") for i in range(12)] + [
        f"dog_{i}" for i in range(20, 24)
    ]
    for name in names:
        Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(tmp_path / f"images/{name}.jpg")
        trimap = np.full((24, 32), 2, np.uint8)
        trimap[8:16, 8:16], trimap[8, 8:16] = 1, 3
        Image.fromarray(trimap).save(tmp_path / f"annotations/trimaps/{name}.png")
    for split, part in (("trainval", names[:30]), ("test", names[30:])):
        (tmp_path / f"annotations/{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in part))
    return tmp_path


def load(root, options, seed):
    return find({**options.model_dump(), "name": "pets", "root": root}, seed)


def all_examples(collection):
    return [example for split in collection.splits.values() for example in split]


def test_validation_is_every_tenth_line_of_trainval(layout):
    splits = load(layout, options(), seed=0).splits
    assert [e.name for e in splits["val"]] == ["Big_Cat_0", "Big_Cat_10", "dog_8"]
    assert len(splits["train"]) == 27
    assert len(splits["test"]) == 10
    assert not {e.name for e in splits["train"]} & {e.name for e in splits["val"]}


def test_a_drawn_share_is_seeded_and_stratified_by_breed(layout):
    first, again, other = (
        [e.name for e in load(layout, options("data.validation=0.25"), seed=s).splits["val"]] for s in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert sum(name.startswith("Big_Cat") for name in first) == 3
    assert sum(name.startswith("dog") for name in first) == 3


def test_the_breed_is_what_stands_before_the_last_underscore(layout):
    assert {e.group for e in all_examples(load(layout, options(), seed=0))} == {
        "Big_Cat",
        "dog",
        "owl",
    }


@pytest.mark.parametrize(
    ("settings", "classes", "pet", "background", "boundary"),
    [
        ((), ("background", "pet"), 1, 0, 1),
        (("data.border=background",), ("background", "pet"), 1, 0, 0),
        (("data.border=ignore",), ("background", "pet"), 1, 0, IGNORE),
        (("data.target=trimap",), ("background", "pet", "boundary"), 1, 0, 2),
    ],
)
def test_what_the_trimap_values_mean(layout, settings, classes, pet, background, boundary):
    collection = load(layout, options(*settings), seed=0)
    mask = read_mask(collection.splits["train"][0].mask, collection.values)
    assert collection.classes == classes
    assert (mask[12, 12], mask[0, 0], mask[8, 10]) == (pet, background, boundary)


@pytest.mark.parametrize("part", ["images", "annotations/trimaps", "annotations/test.txt"])
def test_a_missing_part_of_the_layout_is_named_with_the_ways_on(layout, part):
    path = layout / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as caught:
        load(layout, options(), seed=0)
    assert part in str(caught.value)
    assert "data=synthetic" in str(caught.value)


def damage(layout, kind):
    if kind == "absent":
        (layout / "images/dog_3.jpg").unlink()
    elif kind == "not a picture":
        (layout / "images/dog_3.jpg").write_text("no picture")
    elif kind == "empty":
        (layout / "annotations/trimaps/dog_3.png").write_bytes(b"")
    else:
        Image.fromarray(np.ones((5, 5), np.uint8)).save(layout / "annotations/trimaps/dog_3.png")


@pytest.mark.parametrize("kind", ["absent", "not a picture", "empty"])
def test_bad_files_are_named_before_training(layout, kind):
    damage(layout, kind)
    found = load(layout, options(), seed=0)
    unreadable = survey(found, "headers").unreadable
    ((name, error),) = [(found.splits[s][at].name, e) for s, errors in unreadable.items() for at, e in errors.items()]
    assert name == "dog_3"
    assert "dog_3" in str(error)


def test_a_mask_of_another_size_is_named_before_training(layout):
    damage(layout, "other size")
    with pytest.raises(UserError, match="dog_3"):
        survey(load(layout, options(), seed=0), "headers")


def test_a_strange_mask_value_is_named_with_the_accepted_ones(layout):
    path = layout / "annotations/trimaps/dog_3.png"
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"dog_3.png has the value 9\n  accepted: 1, 2, 3"):
        read_mask(path, pets.mask_values("pet", "pet"))


def test_a_coloured_mask_is_refused(layout):
    path = layout / "annotations/trimaps/dog_3.png"
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match="mode RGB"):
        read_mask(path, pets.mask_values("pet", "pet"))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_other_formats_inside_a_jpg_name_load(layout, kind):
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(layout / "images/dog_3.jpg", format=kind)
    assert read_image(layout / "images/dog_3.jpg").shape == (24, 32, 3)


def test_a_trimap_without_a_pet_loads(layout):
    path = layout / "annotations/trimaps/dog_3.png"
    Image.fromarray(np.full((24, 32), 2, np.uint8)).save(path)
    assert read_mask(path, pets.mask_values("pet", "pet")).max() == 0


def test_the_real_pictures_load(pets: object):

    collection = load(pets, options(), seed=0)
    assert [len(collection.splits[s]) for s in ("train", "val", "test")] == [347, 39, 174]
    assert not any(survey(collection, "headers").unreadable.values())
    example = collection.splits["test"][0]
    assert read_image(example.image).shape[:2] == read_mask(example.mask, collection.values).shape


def test_an_absent_set_is_downloaded_by_torchvision_to_the_place_where_it_is_looked_for(tmp_path, monkeypatch):
    import torchvision.datasets

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", lambda *a, **k: asked.append((a, k)))
    assert str(pets.download()) == "data/oxford-iiit-pet"
    assert asked == [(("data",), {"target_types": "segmentation", "download": True})]


def test_a_download_that_breaks_off_is_told_with_the_ways_on(tmp_path, monkeypatch):
    import torchvision.datasets

    def broken(*arguments, **named):
        raise OSError("connection reset")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", broken)
    with pytest.raises(UserError, match=r"connection reset\n  try one of: copy"):
        pets.download()


def test_a_present_set_is_not_downloaded_again(layout, monkeypatch):
    import torchvision.datasets

    (layout / "data/oxford-iiit-pet").mkdir(parents=True)
    for part in ("images", "annotations"):
        shutil.move(layout / part, layout / "data/oxford-iiit-pet" / part)
    monkeypatch.chdir(layout)
    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", lambda *a, **k: pytest.fail("downloaded again"))
    pets.download()
