"""Shifts: each is what it says, every model sees the same, and what is lost is counted right."""

import colorsys
import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from test_lesions import batches, masks_of, segmenter

from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation.metrics import image_counts, scores
from unetseg.evaluation.shifts import CONDITIONS, SHIFTS, measure, seed_of, shifted, tables

NAMES = [f"picture{number}" for number in range(7)]


def picture(height=48, width=64, seed=0):
    """Return a picture with smooth parts and edges, HxWx3 uint8."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1)))
    return np.clip(blocks + random.normal(0, 5, blocks.shape), 0, 255).astype(np.uint8)


def rounded(values):
    return (255 * np.clip(values, 0, 1)).round()


def brighter(image, amount):
    """Add to the value of HSV, pixel by pixel."""
    result = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        result[place] = colorsys.hsv_to_rgb(hue, saturation, min(1, value + amount))
    return result


def compressed(image, quality):
    """By Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file)) / 255


REFERENCES = {
    "blur": lambda image, amount: gaussian_filter(image / 255, (*(2 * [amount * 64 / 224]), 0), mode="nearest"),
    "contrast": lambda image, amount: image / 255 * amount + (1 - amount) * (image / 255).mean((0, 1)),
    "brightness": brighter,
    "jpeg": compressed,
}


@pytest.mark.parametrize("shift", REFERENCES)
@pytest.mark.parametrize("strength", [1, 3, 5])
def test_a_shift_is_what_a_slow_reference_makes_of_the_picture(shift, strength):
    amount = SHIFTS[shift][strength - 1]
    found, reference = shifted(picture(), shift, amount), rounded(REFERENCES[shift](picture(), amount))
    assert found.dtype == np.uint8
    assert np.abs(found - reference).max() <= 1  # float32, and the rounding of halves


def test_noise_has_the_deviation_that_it_says_and_speckle_that_of_the_brightness():
    grey = np.full((300, 300, 3), 102, np.uint8)
    for amount in (0.08, 0.12):
        assert shifted(grey, "noise", amount).std() / 255 == pytest.approx(amount, rel=0.02)
        assert shifted(grey, "speckle", amount).std() / 255 == pytest.approx(0.4 * amount, rel=0.02)
    assert not shifted(0 * grey, "speckle", 0.6).any(), "black stays black"


def test_every_strength_and_model_has_the_same_noise_of_a_picture_and_each_picture_its_own():
    grey = np.full((8, 8, 3), 128, np.uint8)
    weak, strong = (shifted(grey, "noise", amount, seed_of("a", "noise")).astype(int) - 128 for amount in (0.08, 0.12))
    assert np.abs(strong - 1.5 * weak).max() <= 1.25  # each is rounded
    seeds = {seed_of(name, shift) for name in ("a", "b") for shift in ("noise", "speckle")}
    assert len(seeds) == 4


def test_a_picture_of_other_numbers_than_bytes_is_taken_in_0_to_255():
    exact = picture().astype(np.float32)
    for shift, amounts in SHIFTS.items():
        assert np.array_equal(shifted(exact, shift, amounts[0]), shifted(picture(), shift, amounts[0])), shift


def test_an_unknown_shift_is_refused():
    with pytest.raises(ValueError, match="accepted are noise, speckle, blur"):
        shifted(picture(), "fog", 1)


def test_counts_are_those_of_a_loop_over_single_pictures_however_they_come_in_batches():
    model = segmenter()
    found = measure(model, batches((3, 3, 1)), NAMES, 2, View(size=64))
    images, masks = (torch.cat([getattr(batch, name) for batch in batches()]) for name in ("images", "masks"))
    assert found.indices == list(range(7))
    assert found.counts.shape == (31, 7, 2, 6)
    pairs = zip(images, masks, strict=True)
    clean = torch.cat([image_counts(masks_of(model, image[None]), mask[None], 2) for image, mask in pairs])
    assert torch.equal(found.counts[0], clean), "strength 0 is the model itself"
    for condition in (("noise", 2), ("blur", 5), ("jpeg", 1)):
        shift, strength = condition
        for index in (0, 6):
            rgb = images[index].permute(1, 2, 0).numpy()
            changed = shifted(rgb, shift, SHIFTS[shift][strength - 1], seed_of(NAMES[index], shift))
            predicted = masks_of(model, torch.from_numpy(changed).permute(2, 0, 1)[None])
            counts = image_counts(predicted, masks[index][None], 2)[0]
            assert torch.equal(found.counts[CONDITIONS.index(condition), index], counts)


def test_the_tables_have_what_is_lost_over_the_set_and_of_each_image():
    found = measure(segmenter(), batches(), NAMES, 2, View(size=64))
    both = tables(found, NAMES, ["a", "a", "b", "b", "c", "c", "d"])
    over_set = both["shift"].set_index(["shift", "strength"])
    iou = scores(found.counts.sum(1))["iou"].tolist()
    assert over_set.iou.tolist() == iou
    assert over_set.iou_loss.tolist() == [iou[0] - value for value in iou]
    assert over_set.amount.loc[("blur", 5)] == 6
    lost = over_set[over_set.iou_loss.abs() > 0]
    assert ((lost.iou_loss_low <= lost.iou_loss) & (lost.iou_loss <= lost.iou_loss_high)).all()
    each = both["shift_per_image"].set_index(["shift", "strength", "name"])
    assert each.iou.loc[("noise", 2, "picture3")] == scores(found.counts)["iou"][2, 3].item()
    assert len(each) == 31 * 7


def test_evaluate_writes_tables_and_a_figure_and_the_pictures_as_they_are_score_as_in_its_test(tiny, capsys, figures):
    run = tiny("trainer.max_epochs=1", "gradients.every_n_steps=0")
    summary = evaluate(options_of([f"checkpoint={run.path}", "shift=true"]))
    folder = run.path / "evaluation/synthetic_test"
    table = pd.read_csv(folder / "shift.csv")
    assert table.iou[0] == summary["test/iou"]
    assert table.boundary_iou[0] == summary["test/boundary_iou"]
    assert len(pd.read_csv(folder / "shift_per_image.csv")) == 31 * summary["test/images"]
    assert (folder / "figures/shift.png").stat().st_size > 5000
    assert "IoU lost by the strength of a shift" in capsys.readouterr().out


def test_other_channels_than_rgb_are_refused(tiny, tmp_path):
    run = tiny("trainer.max_epochs=1", "gradients.every_n_steps=0")
    content = torch.load(run.best, weights_only=True)
    for part in ("model", "data"):
        content["hyper_parameters"][part] |= {"in_channels": 4} if part == "model" else {"channels": 4}
    content["hyper_parameters"]["data"] |= {"mean": [0.0] * 4, "std": [1.0] * 4}
    stem = "model.net.encoder.model.conv1.0.weight"
    content["state_dict"][stem] = content["state_dict"][stem][:, [0, 1, 2, 0]]
    for name in ("model.mean", "model.std"):
        content["state_dict"][name] = torch.ones(1, 4, 1, 1)
    torch.save(content, tmp_path / "four.ckpt")
    folder = tmp_path / "set"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        np.save(folder / f"images/{number}.npy", np.zeros((32, 32, 4), np.float32))
        Image.new("L", (32, 32)).save(folder / f"masks/{number}.png")
    options = [f"checkpoint={tmp_path / 'four.ckpt'}", "shift=true", "data=folder", f"data.root={folder}"]
    with pytest.raises(UserError, match="have 4 channels"):
        evaluate(options_of([*options, "data.channels=4", "data.classes=[background,pet]"]))
