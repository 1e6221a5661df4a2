"""Losses: compared with slow loops in float64 and with smp, by hand, and without the pixels that don't count."""

import itertools
import math

import numpy as np
import pytest
import torch
from segmentation_models_pytorch import losses as smp
from segmentation_models_pytorch.losses import BINARY_MODE, MULTICLASS_MODE, DiceLoss
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch.nn import functional as F

from unetseg.names import BINARY_LOSSES, IGNORE, LOSSES, PIXEL_LOSSES
from unetseg.training.boundary import boundary_map
from unetseg.training.losses import balanced_weights, make_loss

NAMES = [(name, 2) for name in LOSSES] + [(name, 3) for name in LOSSES if name not in BINARY_LOSSES]
WEIGHTED = [(name, classes) for name, classes in NAMES if name in PIXEL_LOSSES or (classes == 3 and name != "lovasz")]
CLASS_WEIGHTS = {2: [0.5, 2.0], 3: [0.5, 1.25, 4.0]}
CASES = [(*case, weighted) for weighted, cases in ((False, NAMES), (True, WEIGHTED)) for case in cases]
"""Name, classes, and whether classes and boundaries have weights."""


def make_case(name, classes, weighted):
    """Return the loss of a case."""
    weights = {"class_weights": CLASS_WEIGHTS[classes], "boundary_weight": 10.0} if weighted else {}
    return make_loss(name, classes, **weights)


def examples(classes, dtype=torch.float64, size=(3, 7, 9)):
    """Return logits and a target of which the first picture lacks the last class of three; some pixels are ignored."""
    torch.manual_seed(0)
    target = torch.randint(0, classes, size, dtype=torch.uint8)
    target[0][target[0] == 2] = 0
    target[:, :2, 1:] = IGNORE
    return torch.randn(size[0], 1 if classes == 2 else classes, *size[1:], dtype=dtype), target


# --- the reference: one pixel after another, in float64


def reference(name, logits, target, class_weights=None, boundary=0.0, **parameters):
    """Return a loss of logits BxKxHxW and classes BxHxW, which are arrays."""
    if name == "bce_dice":
        weights = class_weights, boundary
        return reference("bce", logits, target, *weights) + reference("dice", logits, target)
    if name == "lovasz":
        pictures = [
            of_picture(image, mask) for image, mask in zip(logits, target, strict=True) if (mask != IGNORE).any()
        ]
        return sum(pictures) / len(pictures)
    if name in PIXEL_LOSSES:
        return of_pixels(name, logits, target, class_weights, boundary, **parameters)
    return of_classes(name, logits, target, class_weights, **parameters)


def probabilities(values):
    """Return the probabilities of all classes by a pixel's logits."""
    values = [0.0, values[0]] if len(values) == 1 else values
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def counted(logits, target):
    """Yield picture, row, column, class and probabilities of each pixel that counts."""
    for b, y, x in itertools.product(*map(range, target.shape)):
        if target[b, y, x] != IGNORE:
            yield b, y, x, int(target[b, y, x]), probabilities(logits[b, :, y, x])


def of_pixels(name, logits, target, class_weights, boundary, gamma=2.0, smoothing=0.1):
    maps = [slow_boundary_map(mask) for mask in target]
    total = weight = 0.0
    for b, y, x, label, p in counted(logits, target):
        cost = -math.log(p[label])
        if name == "focal":
            cost *= (1 - p[label]) ** gamma
        if name == "soft_cross_entropy":
            soft = [smoothing / len(p) + (1 - smoothing) * (c == label) for c in range(len(p))]
            cost = -sum(share * math.log(q) for share, q in zip(soft, p, strict=True))
        w = (class_weights[label] if class_weights else 1.0) + boundary * maps[b][y, x]
        total, weight = total + w * cost, weight + w
    return total / weight


def of_classes(name, logits, target, class_weights, alpha=0.3, beta=0.7):
    classes = [1] if logits.shape[1] == 1 else range(logits.shape[1])
    losses, weights = [], []
    for c in classes:
        eps = 1e-5 if name == "mcc" else 0.0
        tp = tn = fp = fn = eps
        for _, _, _, label, p in counted(logits, target):
            tp, fn = tp + (label == c) * p[c], fn + (label == c) * (1 - p[c])
            fp, tn = fp + (label != c) * p[c], tn + (label != c) * (1 - p[c])
        absent = not (target == c).any()
        weight = class_weights[c] if class_weights and len(classes) > 1 else 1.0
        if name == "mcc":
            losses.append(1 - (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
            weights.append(0.0 if absent and len(classes) > 1 else weight)
        else:
            a, b = {"dice": (0.5, 0.5), "jaccard": (1, 1), "tversky": (alpha, beta)}[name]
            losses.append(0.0 if absent else 1 - tp / (tp + a * fp + b * fn))
            weights.append(weight)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def of_picture(logits, mask):
    """Return the Lovász extension of the Jaccard loss |M| / |Y or M| of the set M of wrong pixels (Berman et al. 2018).

    It adds up, from the greatest error on, each error times what its pixel adds to the loss of those before it.
    """
    places = [(y, x) for y, x in itertools.product(*map(range, mask.shape)) if mask[y, x] != IGNORE]
    losses = []
    for c in [1] if len(logits) == 1 else range(len(logits)):
        shown = {place for place in places if mask[place] == c}
        if not shown and len(logits) > 1:
            continue
        errors = {}
        for y, x in places:
            sign = 1 if (y, x) in shown else -1
            p = probabilities(logits[:, y, x])[c]
            errors[y, x] = max(0.0, 1 - sign * logits[0, y, x]) if len(logits) == 1 else (1 - p if sign > 0 else p)
        loss, wrong, before = 0.0, set(), 0.0
        for place in sorted(places, key=errors.get, reverse=True):
            wrong.add(place)
            now = len(wrong) / len(shown | wrong)
            loss, before = loss + errors[place] * (now - before), now
        losses.append(loss)
    return sum(losses) / len(losses)


def slow_boundary_map(mask, sigma=5.0):
    """Return the boundary map by flooding objects, and the distance of each pixel to each pixel of each."""
    left = {(y, x) for y, x in itertools.product(*map(range, mask.shape)) if mask[y, x] not in (0, IGNORE)}
    objects = []
    while left:
        start = left.pop()
        flooded, edge = {start}, [start]
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            near = {place for place in near if mask[place] == mask[start]}
            left, flooded, edge = left - near, flooded | near, [*edge, *near]
        objects.append(flooded)
    found = np.zeros(mask.shape)
    for place in itertools.product(*map(range, mask.shape)) if len(objects) > 1 else ():
        nearest, second, *_ = sorted(min(math.dist(place, other) for other in one) for one in objects)
        found[place] = math.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return found


@pytest.mark.parametrize(("name", "classes", "weighted"), CASES)
def test_a_loss_is_that_of_slow_loops(name, classes, weighted):
    logits, target = examples(classes)
    weights = (CLASS_WEIGHTS[classes], 10.0) if weighted else (None, 0.0)
    wanted = reference(name, logits.numpy(), target.numpy(), *weights)
    found = make_case(name, classes, weighted)(logits, target).item()
    assert found == pytest.approx(wanted, rel=1e-6 if weighted else 1e-12)  # maps are in float32
    in_float32 = make_case(name, classes, weighted)(logits.float(), target).item()
    assert in_float32 == pytest.approx(wanted, rel=1e-5)


PARAMETERS = [
    ("focal", {"gamma": 0.5}),
    ("tversky", {"alpha": 0.6, "beta": 0.2}),
    ("soft_cross_entropy", {"smoothing": 0.3}),
]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "parameters"), PARAMETERS)
def test_a_loss_takes_its_parameters(name, parameters, classes):
    logits, target = examples(classes)
    wanted = 0.25 * reference(name, logits.numpy(), target.numpy(), **parameters)
    found = make_loss({name: {"weight": 0.25, **parameters}}, classes)(logits, target).item()
    assert found == pytest.approx(wanted, rel=1e-12)


def test_a_table_is_the_weighted_sum_of_its_losses():
    logits, target = examples(3)
    found = make_loss({"dice": 2.0, "focal": {"weight": 0.5, "gamma": 3.0}, "mcc": 1.0}, 3)(logits, target)
    terms = make_loss("dice", 3), make_loss({"focal": {"gamma": 3.0}}, 3), make_loss("mcc", 3)
    dice, focal, mcc = (term(logits, target).item() for term in terms)
    assert found.item() == pytest.approx(2 * dice + 0.5 * focal + mcc, rel=1e-12)


# --- pixels that don't count, and what is absent


@pytest.mark.parametrize(("name", "classes", "weighted"), CASES)
def test_ignored_pixels_change_neither_the_loss_nor_its_gradient(name, classes, weighted):
    torch.manual_seed(0)
    target = torch.randint(0, classes, (2, 8, 8), dtype=torch.uint8)
    target[:, :3] = IGNORE
    logits = torch.randn(2, 1 if classes == 2 else classes, 8, 8, requires_grad=True)
    loss = make_case(name, classes, weighted)(logits, target)
    loss.backward()
    assert logits.grad[:, :, :3].abs().max() == 0
    assert logits.grad[:, :, 3:].abs().max() > 0
    changed = logits.detach().clone()
    changed[:, :, :3] += 5
    assert make_case(name, classes, weighted)(changed, target).item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "classes"), [case for case in NAMES if case[0] != "soft_cross_entropy"])
def test_a_sure_and_right_prediction_costs_nothing(name, classes):
    target = torch.randint(0, classes, (2, 8, 8), dtype=torch.uint8)
    sure = (target == 1)[:, None] * 60.0 - 30
    if classes > 2:
        sure = torch.stack([(target == c) * 60.0 for c in range(classes)], 1)
    assert make_loss(name, classes)(sure, target).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("name", "classes", "weighted"), CASES)
def test_the_loss_and_its_gradient_are_finite_where_classes_are_absent(name, classes, weighted):
    torch.manual_seed(0)
    for shown, scale in itertools.product([[IGNORE], [0], [1], [0, 1]], [1.0, 200.0]):
        target = torch.tensor(shown, dtype=torch.uint8)[torch.randint(0, len(shown), (2, 4, 4))]
        logits = (scale * torch.randn(2, 1 if classes == 2 else classes, 4, 4)).requires_grad_()
        loss = make_case(name, classes, weighted)(logits, target)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
        if shown == [IGNORE]:
            assert not logits.grad.any()


def test_a_picture_without_a_pixel_that_counts_takes_no_part_in_lovasz():
    for classes in (2, 3):
        logits, target = examples(classes)
        target[1] = IGNORE
        loss = make_loss("lovasz", classes)
        others = loss(logits[[0, 2]], target[[0, 2]])
        assert loss(logits, target).item() == pytest.approx(others.item(), rel=1e-12)


# --- by hand, and as smp and torch have them


def test_bce_and_dice_by_hand():
    logits = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    target = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    bce = (0.693147 + 2.126928) / 2  # -log 1/2 and -log(1 - sigmoid 2)
    dice = 1 - 2 * 0.5 / (0.5 + 0.880797 + 1)
    assert make_loss("bce", 2)(logits, target).item() == pytest.approx(bce, abs=1e-6)
    assert make_loss("dice", 2)(logits, target).item() == pytest.approx(dice, abs=1e-6)
    assert make_loss("bce_dice", 2)(logits, target).item() == pytest.approx(bce + dice, abs=1e-6)


SMPS = {
    "dice": DiceLoss,
    "jaccard": smp.JaccardLoss,
    "tversky": lambda mode, **_: smp.TverskyLoss(mode, alpha=0.3, beta=0.7, ignore_index=IGNORE),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", SMPS)
def test_dice_jaccard_and_tversky_and_their_gradients_are_smps_to_the_last_bit(name, classes, memory_format):
    torch.manual_seed(0)
    target = torch.randint(0, max(2, classes - 1), (3, 17, 33), dtype=torch.uint8)  # of several classes one is absent
    target[:, :3] = IGNORE
    logits = torch.randn(3, 1 if classes == 2 else classes, 17, 33).to(memory_format=memory_format)
    theirs_loss = SMPS[name](BINARY_MODE if classes == 2 else MULTICLASS_MODE, ignore_index=IGNORE)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found, wanted = make_loss(name, classes)(ours, target), theirs_loss(theirs, target.long())
    found.backward()
    wanted.backward()
    assert torch.equal(found, wanted)
    assert torch.equal(ours.grad, theirs.grad)


def smps(name, classes):
    """Return smp's loss of logits and classes without ignored pixels."""
    if name == "mcc":
        return lambda logits, target: smp.MCCLoss()(logits.sigmoid(), target)
    if name == "lovasz":
        return smp.LovaszLoss(BINARY_MODE if classes == 2 else MULTICLASS_MODE, per_image=True)
    if name == "focal":
        return smp.FocalLoss(BINARY_MODE) if classes == 2 else softmax_focal_loss_with_logits
    smoothed = smp.SoftCrossEntropyLoss(smooth_factor=0.1)
    if classes == 2:
        return lambda logits, target: smoothed(torch.cat([torch.zeros_like(logits), logits], 1), target)
    return smoothed


@pytest.mark.parametrize(
    ("name", "classes"),
    [(n, c) for n in ("focal", "lovasz", "soft_cross_entropy", "mcc") for c in (2, 3) if (n, c) != ("mcc", 3)],
)
def test_the_other_losses_and_their_gradients_are_smps(name, classes):
    torch.manual_seed(0)
    target = torch.randint(0, classes, (3, 17, 33), dtype=torch.uint8)
    logits = torch.randn(3, 1 if classes == 2 else 3, 17, 33)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found, wanted = make_loss(name, classes)(ours, target), smps(name, classes)(theirs, target.long())
    found.backward()
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-9)


def test_the_cross_entropy_of_two_classes_is_the_binary_one():
    logits, target = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4), dtype=torch.uint8)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    expected = torch.nn.functional.cross_entropy(both, target.long())
    assert make_loss("cross_entropy", 2)(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)


# --- weights of classes and boundaries


def test_the_weighted_cross_entropy_is_torchs():
    logits, target = examples(3)
    weights = torch.tensor(CLASS_WEIGHTS[3], dtype=torch.float64)
    wanted = F.cross_entropy(logits, target.long(), weight=weights, ignore_index=IGNORE)
    found = make_loss("cross_entropy", 3, class_weights=CLASS_WEIGHTS[3])(logits, target)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_class_weights_by_hand():
    """-log 1/2 on a pixel of class 1 and -log(1 - sigmoid 2) on two of class 0, which count a quarter each."""
    logits, target = torch.tensor([[[[0.0, 2.0, 2.0]]]]), torch.tensor([[[1, 0, 0]]])
    found = make_loss("bce", 2, class_weights=[0.25, 1.0])(logits, target).item()
    assert found == pytest.approx((0.693147 + 0.25 * 2 * 2.126928) / 1.5, abs=1e-6)
    even, target = torch.zeros(1, 3, 1, 4), torch.tensor([[[0, 0, 1, 2]]])
    dice = [1 - 2 * (2 / 3) / (4 / 3 + 2), *[1 - 2 * (1 / 3) / (4 / 3 + 1)] * 2]
    found = make_loss("dice", 3, class_weights=[1.0, 0.0, 3.0])(even, target).item()
    assert found == pytest.approx((dice[0] + 3 * dice[2]) / 4, abs=1e-6)


def test_balanced_weights_by_hand():
    """Of 100 pixels: a class with the mean share has the weight 1, and an absent one none."""
    assert balanced_weights([50, 40, 10]) == pytest.approx([100 / 150, 100 / 120, 100 / 30])
    assert balanced_weights([80, 0, 20]) == pytest.approx([100 / 160, 0, 100 / 40])


def test_a_boundary_is_where_two_objects_are_near():
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 50), np.uint8)
    for _ in range(9):
        top, left = rng.integers(0, (34, 44))
        mask[top : top + rng.integers(2, 7), left : left + rng.integers(2, 7)] = rng.integers(1, 4)
    mask[20:22] = IGNORE
    np.testing.assert_allclose(boundary_map(mask), slow_boundary_map(mask), atol=1e-7)


def test_one_object_or_none_has_no_boundary_to_another():
    mask = np.zeros((12, 12), np.uint8)
    assert not boundary_map(mask).any()
    mask[2:4, 2:4] = mask[4:6, 4:6] = 1  # which touch by a corner
    assert not boundary_map(mask).any()
    mask[4:6, 4:6] = 2
    assert boundary_map(mask).max() == pytest.approx(math.exp(-2 / 50))  # each one's corner is a diagonal step away
    far = np.zeros((8, 200), np.uint8)
    far[:, 0] = far[:, -1] = 1
    assert not boundary_map(far).any()
