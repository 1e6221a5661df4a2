"""Losses: by hand, and without the pixels that don't count."""

import pytest
import torch
from segmentation_models_pytorch.losses import BINARY_MODE, MULTICLASS_MODE, DiceLoss

from unetseg.names import IGNORE
from unetseg.training.losses import make_loss

NAMES = [("dice", 2), ("bce", 2), ("bce_dice", 2), ("cross_entropy", 2), ("dice", 3), ("cross_entropy", 3)]


@pytest.mark.parametrize(("name", "classes"), NAMES)
def test_ignored_pixels_change_neither_the_loss_nor_its_gradient(name, classes):
    torch.manual_seed(0)
    target = torch.randint(0, classes, (2, 8, 8), dtype=torch.uint8)
    target[:, :3] = IGNORE
    logits = torch.randn(2, 1 if classes == 2 else classes, 8, 8, requires_grad=True)
    loss = make_loss(name, classes)(logits, target)
    loss.backward()
    assert logits.grad[:, :, :3].abs().max() == 0
    assert logits.grad[:, :, 3:].abs().max() > 0
    changed = logits.detach().clone()
    changed[:, :, :3] += 5
    assert make_loss(name, classes)(changed, target).item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "classes"), NAMES)
def test_a_sure_and_right_prediction_costs_nothing(name, classes):
    target = torch.randint(0, classes, (2, 8, 8), dtype=torch.uint8)
    sure = (target == 1)[:, None] * 60.0 - 30
    if classes > 2:
        sure = torch.stack([(target == c) * 60.0 for c in range(classes)], 1)
    assert make_loss(name, classes)(sure, target).item() == pytest.approx(0, abs=1e-4)


def test_bce_and_dice_by_hand():
    logits = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    target = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    bce = (0.693147 + 2.126928) / 2  # -log 1/2 and -log(1 - sigmoid 2)
    dice = 1 - 2 * 0.5 / (0.5 + 0.880797 + 1)
    assert make_loss("bce", 2)(logits, target).item() == pytest.approx(bce, abs=1e-6)
    assert make_loss("dice", 2)(logits, target).item() == pytest.approx(dice, abs=1e-6)
    assert make_loss("bce_dice", 2)(logits, target).item() == pytest.approx(bce + dice, abs=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_dice_and_its_gradient_are_smps_to_the_last_bit(classes, memory_format):
    torch.manual_seed(0)
    target = torch.randint(0, max(2, classes - 1), (3, 17, 33), dtype=torch.uint8)  # of several classes one is absent
    target[:, :3] = IGNORE
    logits = torch.randn(3, 1 if classes == 2 else classes, 17, 33).to(memory_format=memory_format)
    smp = DiceLoss(BINARY_MODE if classes == 2 else MULTICLASS_MODE, ignore_index=IGNORE)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found, wanted = make_loss("dice", classes)(ours, target), smp(theirs, target.long())
    found.backward()
    wanted.backward()
    assert torch.equal(found, wanted)
    assert torch.equal(ours.grad, theirs.grad)


def test_the_cross_entropy_of_two_classes_is_the_binary_one():
    logits, target = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4), dtype=torch.uint8)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    expected = torch.nn.functional.cross_entropy(both, target.long())
    assert make_loss("cross_entropy", 2)(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("name", "classes"), NAMES)
def test_a_picture_of_ignored_pixels_gives_a_finite_loss(name, classes):
    target = torch.full((1, 4, 4), IGNORE, dtype=torch.uint8)
    assert torch.isfinite(make_loss(name, classes)(torch.randn(1, 1 if classes == 2 else classes, 4, 4), target))
