"""The embedded data set: the layout of the real one, thin shapes, and textures that can be made alike."""

import threading

import cv2
import numpy as np
import pytest
from conftest import HANG
from PIL import Image

from unetseg.data.drawing import BACKGROUND, BOUNDARY, BREEDS, PET, draw_animal, trimap_from_mask
from unetseg.data.synthetic import write_set

SETTINGS = {"train": 7, "test": 3, "size": 64, "similarity": 0.5, "seed": 0}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("synthetic") / "pets", **SETTINGS)


def names(root, split):
    lines = (root / "annotations" / f"{split}.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if not line.startswith("#")]


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def draw(index, similarity=0.0, size=96):
    breed = list(BREEDS)[index % len(BREEDS)]
    return draw_animal(np.random.default_rng([0, index]), size=size, breed=breed, similarity=similarity)


def test_layout_is_that_of_the_pets(pets):
    both = names(pets, "trainval") + names(pets, "test")
    assert (len(names(pets, "trainval")), len(names(pets, "test"))) == (7, 3)
    assert len(set(both)) == 10
    assert sorted(names(pets, "list")) == sorted(both)
    assert {path.name for path in (pets / "images").iterdir()} == {f"{name}.jpg" for name in both}
    trimaps = pets / "annotations" / "trimaps"
    assert {path.name for path in trimaps.iterdir()} == {f"{name}.png" for name in both}


def test_lines_hold_name_class_species_and_breed_id(pets):
    assert (pets / "annotations" / "list.txt").read_text().startswith("#Image CLASS-ID SPECIES BREED ID\n")
    lines = (pets / "annotations" / "trainval.txt").read_text().splitlines()
    by_breed = {name.rpartition("_")[0]: tuple(map(int, ids)) for name, *ids in map(str.split, lines)}
    # Numbers run over all breeds, then over the cats (species 1) and the dogs (2) separately.
    assert by_breed == {
        "striped": (1, 1, 1),
        "spotted": (2, 1, 2),
        "plain": (3, 1, 3),
        "pointed": (4, 1, 4),
        "patched": (5, 2, 1),
        "shaggy": (6, 2, 2),
    }


def test_pictures_are_rgb_jpegs_and_trimaps_hold_the_official_values_at_the_same_size(pets):
    for name in names(pets, "list"):
        with Image.open(pets / "images" / f"{name}.jpg") as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))
        with Image.open(pets / "annotations" / "trimaps" / f"{name}.png") as trimap:
            assert (trimap.format, trimap.mode, trimap.size) == ("PNG", "L", (64, 64))
            assert set(np.unique(trimap)) == {PET, BACKGROUND, BOUNDARY} == {1, 2, 3}


def test_same_seed_same_bytes_other_seed_other_pictures(pets, tmp_path):
    assert contents(write_set(tmp_path / "again", **SETTINGS)) == contents(pets)
    other = contents(write_set(tmp_path / "other", **SETTINGS | {"seed": 1}))
    ours = contents(pets)
    assert all(other[path] != ours[path] for path in ours if path.suffix in (".jpg", ".png"))


def test_a_picture_does_not_depend_on_how_many_are_drawn(pets, tmp_path):
    larger = contents(write_set(tmp_path / "larger", **SETTINGS | {"train": 9, "test": 4}))
    for path, data in contents(pets).items():
        if path.suffix in (".jpg", ".png"):
            assert larger[path] == data
    assert set(names(pets, "test")) < set(names(tmp_path / "larger", "test"))


@pytest.mark.parametrize("size", [32, 75, 200])
def test_every_size_and_breed_shows_a_pet(size):
    for index in range(len(BREEDS)):
        picture, trimap = draw(index, size=size)
        assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)
        assert (trimap.shape, trimap.dtype) == ((size, size), np.uint8)
        assert 0.02 < np.mean(trimap == PET) < 0.6


def test_boundary_is_one_pixel_on_each_side_of_the_edge():
    mask = np.zeros((12, 20), bool)
    mask[2:9, 2:8] = True  # a body of 7 x 6
    mask[5, 8:18] = True  # a whisker of one pixel
    trimap = trimap_from_mask(mask)
    assert trimap[7].tolist() == [2, 3, 3, 1, 1, 1, 1, 3, 3, *[2] * 11]
    assert trimap[5].tolist() == [2, 3, 3, 1, 1, 1, 1, 3, *[3] * 10, 3, 2]
    assert trimap[:, 14].tolist() == [2, 2, 2, 2, 3, 3, 3, 2, 2, 2, 2, 2]
    assert np.sum(trimap == PET) == 5 * 4


def test_masks_do_not_depend_on_similarity():
    for index in range(6):
        pictures, trimaps = zip(*(draw(index, similarity) for similarity in (0, 0.5, 1)), strict=True)
        assert np.array_equal(trimaps[0], trimaps[1])
        assert np.array_equal(trimaps[0], trimaps[2])
        assert not np.array_equal(pictures[0], pictures[1])


def test_similarity_brings_colour_and_grain_of_coat_and_scene_together():
    def distances(similarity):
        colour, grain = [], []
        for index in range(24):
            picture, trimap = draw(index, similarity)
            picture = picture.astype(np.float32)
            # The scene right around the animal: at 1, a coat is a draw of what stands behind it.
            ring = cv2.dilate((trimap != BACKGROUND).astype(np.uint8), np.ones((15, 15), np.uint8)) == 1
            pet, scene = trimap == PET, ring & (trimap == BACKGROUND)
            colour.append(np.linalg.norm(picture[pet].mean(axis=0) - picture[scene].mean(axis=0)))
            across, down = (np.abs(np.gradient(picture.mean(axis=2), axis=axis)) for axis in (1, 0))
            grain.append(sum(abs(np.log(d[pet].mean() / d[scene].mean())) for d in (across, down)))
        return np.mean(colour), np.mean(grain)

    (colour_0, grain_0), (colour_half, grain_half), (colour_1, grain_1) = map(distances, (0, 0.5, 1))
    assert colour_0 > 40
    assert colour_0 > 1.5 * colour_half > 1.5 * 1.5 * colour_1
    assert grain_0 > grain_half > grain_1


def test_much_of_the_shape_is_thin():
    shares = []
    for index in range(24):
        mask = (draw(index, size=128)[1] != BACKGROUND).astype(np.uint8)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))  # what a stride of 8 still sees
        shares.append(1 - cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc).sum() / mask.sum())
    assert min(shares) > 0.03
    assert np.mean(shares) > 0.1


def test_a_finished_set_is_left_untouched(pets):
    before = {path: path.stat().st_mtime_ns for path in pets.rglob("*")}
    assert write_set(pets, **SETTINGS | {"seed": 5, "train": 1}) == pets
    assert {path: path.stat().st_mtime_ns for path in pets.rglob("*")} == before


def test_a_killed_run_leaves_no_half_set_and_does_not_disturb_the_next(pets, tmp_path):
    def killed(indices):
        yield from list(indices)[:2]
        raise KeyboardInterrupt

    root = tmp_path / "pets"
    with pytest.raises(KeyboardInterrupt):
        write_set(root, **SETTINGS, progress=killed)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".pets.0123.partial" / "images").mkdir(parents=True)  # what SIGKILL would have left
    assert contents(write_set(root, **SETTINGS)) == contents(pets)


def test_two_writers_at_once_both_succeed(pets, tmp_path):
    root = tmp_path / "pets"
    meeting = threading.Barrier(2)

    def wait_for_the_other(indices):
        yield from indices
        meeting.wait(timeout=HANG)  # neither moves its set into place before both are drawn

    def write():
        found.append(write_set(root, **SETTINGS, progress=wait_for_the_other))

    found = []
    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert found == [root, root]
    assert contents(root) == contents(pets)
    assert list(tmp_path.iterdir()) == [root]


def test_progress_sees_every_picture(tmp_path):
    seen = []
    three = SETTINGS | {"train": 2, "test": 1}
    write_set(tmp_path / "pets", **three, progress=lambda indices: seen.extend(indices) or seen)
    assert seen == [0, 1, 2]


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no complete set"):
        write_set(tmp_path, **SETTINGS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"similarity": 1.5}, {"similarity": -0.1}, {"size": 16}, {"train": -1}])
def test_wrong_settings_are_refused_with_what_is_accepted(tmp_path, wrong):
    with pytest.raises(ValueError, match="similarity is 0 to 1, size at least 32"):
        write_set(tmp_path / "pets", **SETTINGS | wrong)
    assert list(tmp_path.iterdir()) == []
