"""Path lengths: how many residual branches the gradient has passed through on its way down a ResNet.

A gradient that reaches a block H = F(x) + P(x) goes on by the residual branch F or by the addition P (x itself, or its
projection). Over n blocks these are paths of 0 ... n branches (Veit et al. 2016), and the gradient at the input of the
first block is the sum of a term for each number of branches, c_0 ... c_n. Veit et al. draw paths at random; here the
terms are exact: all terms so far are passed down block by block, each by both ways. At an exit of the encoder, where
the decoder's gradient enters, it begins as a path of 0 branches.

With the branches' gradient scaled by t, the gradient is a polynomial in t with these terms as its coefficients. No
system of equations is solved for them, which would amplify rounding errors by 10^6 for 16 blocks and 10^19 for 50.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unetseg.gradients.short import residual_blocks


def gradient_by_path_length(net: Any, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the terms c_0 ... c_n of the gradient at the input of an encoder's first residual block.

    They cost (n + 1) / 2 backward passes through the encoder and the memory of n + 1 such gradients.

    Args:
        net: an encoder-decoder of segmentation-models-pytorch, or a SkipUnet, whose encoder has n residual blocks that
            follow each other; in eval mode, where batch normalisation couples no pictures.
        images: BxCxHxW, as the net takes them.
        loss: maps the logits, BxKxHxW, to a scalar.

    Returns:
        (n + 1)xBxSxhxw, which sum to dL/dx. What leaves the encoder above the first block has no part in it.

    Raises:
        ValueError: there are no residual blocks, something lies between two of them, or between a block's input and its
            first convolution.
    """
    blocks = list(residual_blocks(net.encoder).values())
    if not blocks:
        raise ValueError(f"{type(net.encoder).__name__} has no residual blocks that add their input")
    by_addition: dict[int, Tensor] = {}
    by_branch: dict[int, Tensor] = {}
    outputs: list[Tensor] = []

    def on_input(number: int, block: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        if number and x is not outputs[-1]:
            raise ValueError(f"something lies between the residual blocks {number - 1} and {number} of the encoder")
        x = x if number else x.detach().requires_grad_()
        by_addition[number], by_branch[number] = x.view_as(x), x.view_as(x)
        return (by_addition[number],)

    def on_branch(number: int, convolution: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        if inputs[0] is not by_addition[number]:
            raise ValueError(f"residual block {number} of the encoder changes its input before its first convolution")
        return (by_branch[number],)

    def on_output(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        outputs.append(output)

    handles = []
    for number, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(partial(on_input, number)))
        handles.append(block.conv1.register_forward_pre_hook(partial(on_branch, number)))
        handles.append(block.register_forward_hook(on_output))
    try:
        with torch.enable_grad():
            features = net.encoder(images)
    finally:
        for handle in handles:
            handle.remove()

    if features[-1] is not outputs[-1]:
        raise ValueError("the encoder's deepest feature is not the output of its last residual block")
    exits = [feature.detach().requires_grad_() for feature in features]
    with torch.enable_grad():
        value = loss(net.segmentation_head(net.decoder(exits)))
    entering = torch.autograd.grad(value, exits, allow_unused=True, materialize_grads=True)

    terms: list[Tensor] = []
    for number in reversed(range(len(outputs))):  # a net that ends early has stages that it doesn't use
        for feature, gradient in zip(features, entering, strict=True):
            if feature is outputs[number]:
                terms = [terms[0] + gradient, *terms[1:]] if terms else [gradient]
        ways = by_addition[number], by_branch[number]
        passed = [torch.autograd.grad(outputs[number], ways, term, retain_graph=True) for term in terms]
        shorter = [gradient for gradient, _ in passed]
        longer = [gradient for _, gradient in passed]
        middle = [a + b for a, b in zip(shorter[1:], longer[:-1], strict=True)]
        terms = [*shorter[:1], *middle, *longer[-1:]]
    return torch.stack(terms)
