"""What a model costs, counted by hand."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from unetseg.evaluation.cost import cost
from unetseg.model import Segmenter
from unetseg.names import SKIPS


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.last(self.relu(self.first(images.float())))


def test_parameters_flops_and_activation_memory_by_hand():
    found = cost(Small(), 8)
    assert found["parameters"] == 4 * 3 * 9 + 4 + 2 * 4 + 2
    assert found["flops"] == 2 * 64 * (4 * 3 * 9 + 2 * 4)
    # kept for the backward pass: the first convolution's input, and the activation that ReLU and the last one share
    assert found["activation_memory"] == 4 * (3 * 64 + 4 * 64)


def test_what_eval_mode_keeps_is_what_a_training_step_keeps():
    model = Segmenter(classes=2, encoder="resnet18", weights=None).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    of_a_step = sum(size for pointer, size in kept.items() if pointer not in own)
    assert 4 * cost(model, 64)["activation_memory"] == pytest.approx(of_a_step, rel=0.01)
    assert model.training
    assert logits.requires_grad


def test_placebo_costs_what_concat_costs():
    of = {skip: cost(Segmenter(classes=2, encoder="resnet18", weights=None, skip=skip), 64) for skip in SKIPS}
    assert of["placebo"] == of["concat"]
    assert of["none"]["flops"] < of["add"]["flops"] < of["concat"]["flops"] < of["attention"]["flops"]
