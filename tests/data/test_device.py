"""data.cache=device: the same batches, but for the rounding of another augmentation, from what lies on the device."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, prepared

from unetseg.data import device
from unetseg.data.cache import Cache
from unetseg.errors import UserError
from unetseg.names import IGNORE
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.options.settings import differences
from unetseg.training import preflight

SIZE = 96


def data_of(drawn, *overrides):
    """Return a DataModule whose files are found."""
    options = compose("train", Train, [*TINY, f"data.root={drawn}", f"data.size={SIZE}", *overrides])
    return prepared(options.data.model_dump())


def batches(data, loader, epochs=1):
    """Return the batches of some epochs, as they reach the model."""
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        found += [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return found


def joined(found):
    """Return all images, masks and positions."""
    return [torch.cat(parts) for parts in list(zip(*found, strict=True))[:3]]


@pytest.fixture(scope="module")
def both(drawn):
    """Return what five epochs of training hold, augmented by the processor's libraries and on the device."""
    for_each = [data_of(drawn, f"data.cache={kind}") for kind in ("none", "device")]
    return [joined(batches(data, data.train_dataloader(), epochs=5)) for data in for_each]


def test_the_pictures_are_augmented_alike_but_for_rounding(both):
    (images, _, order), (ours, _, our_order) = both
    assert torch.equal(order, our_order)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous(memory_format=torch.channels_last)
    error = (ours.int() - images.int()).abs().float()
    assert error.mean() < 1.5
    assert error.flatten(1).mean(1).max() < 5, "in no picture"
    others = (images.roll(1, 0).int() - images.int()).abs().float()
    assert error.mean() < others.mean() / 20, "and not because all look alike"


def test_the_masks_are_moved_alike_but_at_edges(both):
    (_, masks, _), (_, ours, _) = both
    assert {*ours.unique().tolist()} == {0, 1, IGNORE}
    assert (ours != masks).float().mean() < 0.01


def test_each_turn_of_the_colours_is_the_librarys():
    """Against albumentations, one step at a time, on every colour there is in steps of 15."""
    from albumentations.augmentations.pixel import functional

    levels = np.arange(0, 256, 15, dtype=np.uint8)
    picture = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 18, 3)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    steps = (
        functional.adjust_brightness_torchvision,
        functional.adjust_contrast_torchvision,
        functional.adjust_saturation_torchvision,
        functional.adjust_hue_torchvision,
    )
    for colour, (step, amount) in enumerate(zip(steps, (1.2, 0.8, 1.2, 0.03), strict=True)):
        turns = torch.tensor([[(1.0, 1.0, 1.0, 0.0)] * 4])
        assert torch.allclose(device.adjust_colours(image, turns), image, atol=1e-5)
        turns[0, 2, colour] = amount
        found = device.adjust_colours(image, turns)[0].permute(1, 2, 0) * 255
        # albumentations knows 180 hues
        assert (found - torch.from_numpy(step(picture, amount))).abs().max() < (8 if step is steps[3] else 1.6), colour


def test_without_augmentation_the_batches_are_the_same_to_the_last_bit(drawn):
    plain, ours = (data_of(drawn, "data.augment=false", f"data.cache={kind}") for kind in ("none", "device"))
    for name in ("train_dataloader", "val_dataloader"):
        theirs = batches(plain, getattr(plain, name)())
        found = batches(ours, getattr(ours, name)())
        assert len(found) == len(theirs)
        for one, other in zip(found, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_picture_that_is_only_flipped_keeps_every_value(drawn):
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    mask = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8)
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    images, masks = device.warp(image, mask, flip)
    assert torch.equal((255 * images).round().byte(), image.flip(3))
    assert torch.equal(masks, mask.flip(2))


def test_a_training_is_the_same_with_any_number_of_workers(tiny):
    runs = [
        tiny("data.cache=device", f"data.workers={workers}", f"name=workers{workers}", "trainer.max_epochs=1")
        for workers in (0, 2)
    ]
    assert runs[0].metrics.read_text() == runs[1].metrics.read_text()
    assert json.loads(runs[0].summary.read_text())["test/images"] == 7


def test_what_cannot_be_read_is_left_out_of_its_batch(drawn, monkeypatch):
    data = data_of(drawn, "data.cache=device")
    data.skip_unreadable = True
    real = Cache.__init__

    def without_the_fourth(cache, *arguments):
        real(cache, *arguments)
        cache.content = np.array(cache.content)
        cache.content[3] = 0

    monkeypatch.setattr(Cache, "__init__", without_the_fourth)
    found = batches(data, data.train_dataloader())
    assert torch.cat([batch.unreadable for batch in found]).tolist() == [3]
    assert sorted(torch.cat([batch.indices for batch in found]).tolist()) == [i for i in range(18) if i != 3]
    data.skip_unreadable = False
    with pytest.raises(UserError, match="can't be read as a picture"):
        batches(data, data.train_dataloader())


def test_a_set_too_large_for_the_device_is_refused(drawn, monkeypatch):
    data = data_of(drawn, "data.cache=device")
    monkeypatch.setattr(data, "_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**6))
    with pytest.raises(UserError, match=r"takes 663,552 bytes, 1,000,000 of cuda are free(.|\n)*data\.cache=ram"):
        data.train_dataloader()


def test_without_kornia_it_is_refused_with_the_two_ways_on(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unetseg\[device\]', or data\.cache=ram"):
        preflight.train(compose("train", Train, ["data=synthetic", "data.cache=device"]))
    preflight.train(compose("train", Train, ["data=synthetic", "data.cache=device", "data.augment=false"]))


@pytest.mark.parametrize(("before", "now", "told"), [("ram", "device", 1), ("device", "none", 1), ("ram", "disk", 0)])
def test_a_run_goes_on_with_the_rounding_that_it_began_with(before, now, told):
    recorded, options = (compose("train", Train, ["data=synthetic", f"data.cache={kind}"]) for kind in (before, now))
    assert len(differences(recorded.model_dump(), options.model_dump())) == told
