"""Segmenter: pictures as they come, normalised in one place."""

import pytest
import torch

from unetseg.model import Segmenter, SkipUnet
from unetseg.model.segmenter import class_map


def test_normalisation_is_that_of_the_encoder():
    model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(model(images), model.net((images / 255 - mean) / std), rtol=1e-3, atol=1e-4)


def test_uint8_and_float_pictures_give_the_same_logits():
    model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(model(images), model(images.float()))


def test_its_buffers_leave_the_keys_of_the_net_alone():
    model = Segmenter(classes=3, encoder="resnet18", weights=None)
    assert list(model.net.state_dict()) == list(SkipUnet("resnet18", weights=None, classes=3).state_dict())


@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (3, 3), (7, 7)])
def test_two_classes_have_one_logit_and_more_have_one_each(classes, channels):
    assert (
        Segmenter(classes=classes, encoder="resnet18", weights=None).net.segmentation_head[0].out_channels == channels
    )


def test_channels_last_changes_the_layout_and_not_the_result():
    torch.manual_seed(0)
    plain = Segmenter(classes=2, channels_last=False, encoder="resnet18", weights=None).eval()
    other = Segmenter(classes=2, channels_last=True, encoder="resnet18", weights=None).eval()
    other.load_state_dict(plain.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(plain(images), other(images), rtol=1e-3, atol=1e-4)
    assert other.net.encoder.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_class_maps_by_hand():
    assert class_map(torch.tensor([0.0, 2.0, -1.0]).view(1, 1, 1, 3)).flatten().tolist() == [0, 1, 0]
    assert class_map(torch.tensor([[1.0, 3.0, 2.0]]).view(1, 3, 1, 1)).item() == 1
