"""Batches: the same for any number of workers, new in every epoch, each picture exactly once."""

import itertools

import numpy as np
import pytest
import torch
from conftest import prepared

from unetseg.data.dataset import EpochSampler
from unetseg.data.transforms import Transform
from unetseg.data.view import View
from unetseg.names import IGNORE
from unetseg.options.compose import compose
from unetseg.options.schema import Train


@pytest.fixture(scope="module")
def make(drawn):
    """Return a function that makes a ready data module of 20 + 7 pictures."""

    def build_it(*overrides: str, seed: int = 0):
        tiny = ("data=synthetic", "data.size=64", "data.train_images=20", "data.test_images=7", "data.batch_size=4")
        options = compose("train", Train, [*tiny, f"data.root={drawn}", *overrides])
        return prepared(options.data.model_dump(), seed)

    return build_it


def epoch(data, number: int):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_any_number_of_workers_gives_the_same_batches(make):
    batches = [epoch(make(f"data.workers={workers}"), 3) for workers in (0, 1, 2)]
    assert equal(batches[0], batches[1])
    assert equal(batches[0], batches[2])


def test_lasting_workers_draw_anew_in_every_epoch(make):
    loader = make("data.workers=2").train_dataloader()
    seen = []
    for number in range(2):
        loader.sampler.set_epoch(number)
        seen.append(torch.cat([batch.images for batch in loader]))
    assert not torch.equal(seen[0], seen[1])
    again = make("data.workers=2").train_dataloader()
    again.sampler.set_epoch(1)
    assert torch.equal(seen[1], torch.cat([batch.images for batch in again]))


def test_epochs_differ_in_order_and_augmentation(make):
    data = make("data.workers=0")
    first, second = epoch(data, 0), epoch(data, 1)
    order = [torch.cat([b.indices for b in e]).tolist() for e in (first, second)]
    assert order[0] != order[1]
    pictures = [
        {int(i): image for b in e for i, image in zip(b.indices, b.images, strict=True)} for e in (first, second)
    ]
    assert sum(torch.equal(pictures[0][i], pictures[1][i]) for i in pictures[0]) <= 1


def test_pictures_of_one_epoch_are_augmented_differently():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = np.zeros((40, 50), np.uint8)
    transform = Transform(View(32), augment=True)
    drawn = [transform(image, mask, (0, 0, index))[0].tobytes() for index in range(12)]
    assert len(set(drawn)) >= 9, "one in fifty is neither moved nor coloured, so a few may be alike"


def test_the_seed_changes_the_batches(make):
    assert not equal(epoch(make("data.workers=0"), 0), epoch(make("data.workers=0", seed=1), 0))


def test_evaluation_is_plain_and_complete(make):
    data = make("data.workers=0")
    first, second = list(data.test_dataloader()), list(data.test_dataloader())
    assert equal(first, second)
    assert torch.cat([batch.indices for batch in first]).tolist() == list(range(7))


def test_batches_are_uint8_with_channels_innermost(make):
    batch = next(iter(make("data.workers=0").train_dataloader()))
    assert batch.images.dtype == batch.masks.dtype == torch.uint8
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_what_an_augmentation_moves_in_from_outside_is_ignored(make):
    masks = torch.cat([batch.masks for number in range(3) for batch in epoch(make("data.workers=0"), number)])
    assert set(masks.unique().tolist()) == {0, 1, IGNORE}


def test_without_augmentation_training_pictures_are_only_resized(make):
    masks = torch.cat([batch.masks for batch in epoch(make("data.workers=0", "data.augment=false"), 0)])
    assert set(masks.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("length", [7, 8, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_an_evaluation_with_every_example_once(length, ranks):
    shares = [[i for _, i in EpochSampler(length, shuffle=False, seed=0, rank=r, ranks=ranks)] for r in range(ranks)]
    assert sorted(itertools.chain(*shares)) == list(range(length))


@pytest.mark.parametrize("length", [7, 8, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_training_equally_without_repeats(length, ranks):
    samplers = [EpochSampler(length, shuffle=True, seed=0, rank=r, ranks=ranks) for r in range(ranks)]
    shares = [[i for _, i in sampler] for sampler in samplers]
    assert [len(share) for share in shares] == [length // ranks] * ranks == [len(s) for s in samplers]
    assert len(set(itertools.chain(*shares))) == length // ranks * ranks


def test_the_sampler_tells_the_epoch():
    sampler = EpochSampler(3, shuffle=True, seed=0)
    sampler.set_epoch(5)
    assert {number for number, _ in sampler} == {5}
