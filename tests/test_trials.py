"""What a class of the user's own does wrong is said before a training: each rule of docs/extending.md has a test."""

import random
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from fake_engine import save_untrained

import unetseg
from unetseg import classes
from unetseg.errors import UserError
from unetseg.evaluation.decoding import Redecoder
from unetseg.model import SkipUnet, checkpoint
from unetseg.model.own import own_decoder, own_fusion
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.options.settings import trust_of
from unetseg.training import build
from unetseg.training.own_loss import own_loss

WIDTHS = ([3, 4, 4, 8, 8, 8], [8, 8, 8, 4, 4])


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """The wrong classes are modules beside where the command runs."""
    monkeypatch.syspath_prepend(ROOT / "tests/own")


def net_with(**given) -> SkipUnet:
    torch.manual_seed(0)
    return SkipUnet("resnet18", weights=None, **given).eval()


def try_decoder(name, flow="both", skip="concat"):
    passed = {"skip": [skip] * 4, "flow": [flow] * 4, "gradient": [1.0] * 4, "normalisation": "batch"}
    return own_decoder(f"wrong_parts:{name}", *WIDTHS, **passed)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("Forward", "has a forward of its own"),
        ("Scaled", "has a `scale` of its own"),
        ("InPlace", "writes into the tensors"),
        ("Unit", "gives NaN or infinite numbers.*, of zeros"),
        ("Product", r"leaves nothing of the deep path(.|\n)*is_whole_without = False"),
        ("Drawn", "its tensor signs is drawn at random"),
        ("Spare", r"its parameter spare\.weight has no gradient"),
        ("Listed", r"its layers\['first'\]\[0\]\.weight would be neither trained nor kept(.|\n)*nn\.ModuleList"),
        ("ListedTensor", r"its tensor signs\[0\] is drawn at random"),
        ("TrainingOnly", "its tensor kept is drawn at random"),
        ("Growing", "two objects with the same parameters and buffers"),
        ("Started", "two objects with the same parameters and buffers"),
        ("Sparse", "its tensor mixed is drawn at random"),
        ("InPlaceBehind", r"fails in the backward pass: RuntimeError: .*in-?place"),
        ("Leaving", r"fails on tensors.*SystemExit: bye \(wrong_parts\.py, line"),
        ("Extra", "_extra_state is no tensor"),
        ("Hooked", "can't be copied(.|\n)*nn.utils.parametrizations"),
        ("Enclosed", "two objects with the same parameters and buffers give different results"),
        ("Lazy", r"its layer\.weight has no shape before a first call"),
        ("Late", "makes its gain when it is called"),
        ("Placed", "fails on tensors of 2x8x7x24 and 2x4x7x24"),
    ],
)
def test_a_fusion_that_breaks_a_rule_is_refused(kind, problem):
    with pytest.raises(UserError, match=problem):
        own_fusion(f"wrong_parts:{kind}", 8, 4, "both", 1.0)


def test_lists_of_layers_that_torch_finds_computed_weights_constants_and_random_calls_are_allowed():
    own_fusion("wrong_parts:Allowed", 8, 4, "both", 1.0)
    for _ in range(9):
        own_fusion("wrong_parts:DropPath", 8, 4, "both", 1.0)


def test_a_trial_leaves_all_random_numbers_as_they_are(monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("it would set a GPU's seed, too"))

    def drawn(tries):
        torch.default_generator.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        if tries:
            own_fusion("wrong_parts:DropPath", 8, 4, "both", 1.0)
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    assert drawn(tries=True) == drawn(tries=False)


@pytest.mark.parametrize(("flow", "gradient"), [("forward", 1.0), ("backward", 1.0), ("both", 0.5)])
def test_a_fusion_that_passes_neither_flow_nor_gradient_on_is_refused_where_they_are_asked_for(flow, gradient):
    own_fusion("wrong_parts:Swallowing", 8, 4, "both", 1.0)
    with pytest.raises(UserError, match=f"is (both, not {flow}|1.0, not {gradient})"):
        own_fusion("wrong_parts:Swallowing", 8, 4, flow, gradient)


def test_a_fusion_is_tried_also_where_no_gradients_are_computed():
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            own_fusion("wrong_parts:Blurred", 8, 4, "forward", 1.0)


def test_a_decoder_takes_features_by_its_fusions_alone_and_with_the_flow_that_is_asked():
    with pytest.raises(UserError, match="takes the features of level 1 by another way than its fusion"):
        try_decoder("Bypass")
    for name in ("Beside", "BesideWithoutGradient"):
        with pytest.raises(UserError, match="takes the features of level 1 by another way than its fusion"):
            try_decoder(name, skip="none")
    with pytest.raises(UserError, match=r"gives its fusions\[0\] something else than the features of level 1"):
        try_decoder("Coarsest")
    with pytest.raises(UserError, match=r"gives its fusions\[0\] something else than the features of level 1"):
        try_decoder("Before")
    try_decoder("Deaf")
    with pytest.raises(UserError, match="level 1: the flow of Concat is both, not forward"):
        try_decoder("Deaf", flow="forward")
    try_decoder("Mirrored", flow="forward")


def test_a_decoders_fusions_are_modules_of_it():
    with pytest.raises(UserError, match=r"has no `fusions` of its levels(.|\n)*in an nn\.ModuleList"):
        try_decoder("ListOfFusions")


@pytest.mark.parametrize("skip", ["none", "add", "placebo", "wrong_parts:Blurred"])
def test_a_decoder_has_the_skips_by_which_its_run_is_named(skip):
    try_decoder("Mirrored", skip=skip)
    try_decoder("Ignoring")
    with pytest.raises(UserError, match=rf"level 1: Concat is not model\.skip={skip}\n(.|\n)*try: model\.skip=concat"):
        try_decoder("Ignoring", skip=skip)


def test_an_own_loss_is_read_as_training_left_it(tmp_path):
    own_loss("wrong_parts:InTraining", classes=2)
    loss = own_loss("wrong_parts:Learned", classes=2)
    torch.save({"state_dict": {"model.a": torch.ones(1), "loss.weight": torch.tensor(3.0)}}, tmp_path / "a.ckpt")
    checkpoint.load_loss(tmp_path / "a.ckpt", loss)
    assert loss.weight == 3
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"b\.ckpt can't be loaded"):
        checkpoint.load_loss(tmp_path / "b.ckpt", loss)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("TargetInPlace", "writes into the tensors"),
        ("LogitsInPlace", "writes into the tensors"),
        ("Counts255", r"counts pixels of 255(.|\n)*counts = target != 255"),
        ("Infinite", "gives NaN or infinite numbers"),
        ("Counts255InTraining", "counts pixels of 255"),
    ],
)
def test_a_loss_that_breaks_a_rule_is_refused(name, problem):
    with pytest.raises(UserError, match=problem):
        own_loss(f"wrong_parts:{name}", classes=2)


def test_a_loss_of_three_classes_that_does_not_know_255_is_told_so():
    with pytest.raises(UserError, match="counts pixels of 255"):
        own_loss("wrong_parts:OutOfBounds", classes=3)


def test_what_a_constructor_made_is_there_after_loading(tmp_path):
    given = ("model.skip=wrong_parts:Blurred", "model.weights=null")
    save_untrained(tmp_path / "model.ckpt", *given)
    unetseg.save_pretrained(tmp_path / "model.ckpt", tmp_path / "folder", trust=True)
    for model in (
        checkpoint.load(tmp_path / "model.ckpt", trust=True)[0],
        checkpoint.load_pretrained(tmp_path / "folder", trust=True)[0],
    ):
        assert all((fusion.filter == 1 / 9).all() for fusion in model.net.fusions)
    card = (tmp_path / "folder/README.md").read_text()
    assert 'from_pretrained("FOLDER or REPOSITORY", trust=True)' in card


def test_weights_that_two_layers_share_are_there_after_loading(tmp_path):
    net, images = net_with(skip="wrong_parts:Tied"), torch.rand(1, 3, 64, 64)
    net.save_pretrained(tmp_path / "folder")
    loaded = SkipUnet.from_pretrained(tmp_path / "folder", trust=True)
    assert torch.equal(loaded(images), net(images))


@pytest.mark.parametrize("initialisation", ["he", "glorot"])
def test_an_own_class_keeps_its_first_weights_and_inherited_blocks_begin_as_the_unets(initialisation):
    net = net_with(skip="wrong_parts:Blurred", decoder="wrong_parts:Mirrored", initialisation=initialisation)
    assert all((fusion.gate.bias == -6).all() for fusion in net.fusions)
    assert not net.decoder.last.weight.any()
    usual = net_with(initialisation=initialisation)
    of_both = [each.decoder.blocks[-1].conv2[0].weight.std() for each in (net, usual)]
    assert torch.isclose(*of_both, rtol=0.1)


def test_lesions_decode_as_an_own_decoder_does():
    net = net_with(decoder="wrong_parts:Mirrored")
    with torch.inference_mode():
        features = net.encoder(torch.rand(1, 3, 64, 64))
        assert torch.equal(Redecoder(net).decode(features, [None] * 5), net.decode(features))


def test_deep_supervision_calls_a_decoder_for_its_nodes_before_a_training():
    given = ["model.encoder=resnet18", "model.weights=null", "model.decoder=wrong_parts:Mirrored"]
    with pytest.raises(UserError, match=r"deep_supervision=true: .*Mirrored fails with with_nodes=True: TypeError"):
        build.make_module(compose("train", Train, [*TINY, *given, "model.deep_supervision=true"]))


def test_a_class_that_reads_numbers_has_no_matched_parameters():
    with pytest.raises(UserError, match=r"device meta(.|\n)*match_parameters=false"):
        net_with(skip="wrong_parts:Counting", match_parameters=True)


def test_a_module_that_ends_the_process_is_an_error_like_another(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text("import argparse, sys\nsys.exit('bye')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"import of ending fails: SystemExit: bye \(ending.py, line 2\)"):
        classes.find("ending:A", "loss")


def test_the_line_that_is_named_is_of_the_users_file_and_not_of_a_library_that_it_calls(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import json\n\njson.loads('{')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"import of broken fails: JSONDecodeError: .* \(broken\.py, line 3\)"):
        classes.find("broken:A", "loss")


def test_a_module_of_the_standard_library_and_main_are_told_apart_from_ones_own():
    with pytest.raises(UserError, match=r"the module code has no Mine \(.*code\.py\)(.|\n)*another name of your file"):
        classes.find("code:Mine", "loss")
    with pytest.raises(UserError, match="__main__ is the command that runs"):
        classes.find("__main__:Mine", "loss")


def test_an_own_loss_stands_in_no_table():
    with pytest.raises(UserError, match="stands alone"):
        compose("train", Train, [*TINY, "loss={my_losses:Power:1,dice:1}"])


def test_the_next_step_of_a_run_with_own_classes_has_trust():
    assert trust_of({"model": {"decoder": "a:B"}}) == " trust=true"
    assert trust_of({"callbacks": ["a:B"], "loss": "dice"}) == ""


def test_the_loss_and_the_decoder_of_the_page_keep_its_rules(tmp_path, monkeypatch):
    page = (ROOT / "docs/extending.md").read_text()
    (tmp_path / "of_page.py").write_text(re.search(r"```python\n(# my_parts\.py\n.*?)```", page, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    own_loss("of_page:Squared", classes=2)
    net_with(decoder="of_page:Gained", skip_flow="forward", skip_scale=0.5)
