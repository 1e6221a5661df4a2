"""Decoding again from the first changed block on gives what decoding all blocks does, and runs no more of them."""

import pytest
import torch

from unetseg.evaluation.decoding import Redecoder
from unetseg.model import SkipUnet


@pytest.mark.parametrize(
    "options", [{}, {"skip": "attention", "stem_skip": True}, {"skip": "nested"}, {"skip": "permuted"}], ids=str
)
def test_redecoding_is_decoding_to_the_last_bit(options):
    torch.manual_seed(0)
    net = SkipUnet("resnet18", weights=None, **options).eval()
    features = list(net.encoder(torch.rand(2, 3, 32, 32)))
    generator = torch.Generator().manual_seed(1)
    redecoder = Redecoder(net)
    with torch.inference_mode():
        for _ in range(30):
            changes = torch.randint(0, 3, (5,), generator=generator).tolist()
            changed = [own * (1 + change) for own, change in zip(features, changes, strict=False)]
            assert torch.equal(
                redecoder.decode([*changed, features[-1]], changes), net.decode([*changed, features[-1]])
            )


def test_blocks_above_the_first_change_do_not_run_again():
    net, ran = SkipUnet("resnet18", weights=None).eval(), []
    for number, block in enumerate(net.decoder.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    features, redecoder = net.encoder(torch.zeros(1, 3, 32, 32)), Redecoder(net)
    redecoder.decode(features, [None] * 5)
    assert ran == [0, 1, 2, 3, 4]
    redecoder.decode(features, [None, "cut", None, None, None])  # level 1 is the fourth block's
    assert ran == [0, 1, 2, 3, 4, 3, 4]
    redecoder.decode(features, [None, "cut", None, None, None])
    assert ran == [0, 1, 2, 3, 4, 3, 4]
