"""Callbacks of the user's own: what they keep must be readable when a run is resumed; it is said before it begins."""

import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

import unetseg
from unetseg.errors import UserError
from unetseg.training.restored import check_callbacks
from unetseg.training.resume import AtomicIO


class Keeping(L.Callback):
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


class Named(Keeping):
    @property
    def state_key(self):
        return self.state["name"]


class Later(L.Callback):
    """Has its state only once the training has begun."""

    def state_dict(self):
        return {"best": self.best}


class Stateless(L.Callback):
    pass


PLAIN = {"best": 0.5, "of": [1, ("a", None)], 3: torch.zeros(2), "more": {"on": True}}


@pytest.mark.parametrize(
    "callbacks",
    [
        [Keeping(PLAIN)],
        [Keeping({}), Later()],
        [Stateless(), Stateless()],
        [Named({"name": "one"}), Named({"name": "two"})],
    ],
)
def test_callbacks_with_plain_states_of_different_names_are_accepted(callbacks, tmp_path):
    check_callbacks(callbacks)
    AtomicIO().save_checkpoint({"callbacks": PLAIN}, tmp_path / "last.ckpt")
    assert AtomicIO().load_checkpoint(tmp_path / "last.ckpt")["callbacks"].keys() == PLAIN.keys()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"best": np.float64(0.5)}, r"Keeping\.state_dict\(\)\['best'\] is a numpy\.float64: no run could be resumed"),
        ({"of": [1, {"where": Path("x")}]}, r"\['of'\]\[1\]\['where'\] is a pathlib\.PosixPath"),
        ({"f": len}, r"\['f'\] is a builtins\."),
        ({np.int64(3): 1}, r"the key .*3.* of callbacks: Keeping\.state_dict\(\) is a numpy\.int64"),
        ([1], r"Keeping\.state_dict\(\) is list"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_refused_with_its_place(state, problem):
    with pytest.raises(UserError, match=problem):
        check_callbacks([Keeping(state)])


def test_two_callbacks_of_a_class_with_a_state_are_refused():
    with pytest.raises(UserError, match=r"2 of Keeping have a state(.|\n)*state_key"):
        check_callbacks([Keeping({}), Keeping({})])


def test_a_state_that_is_no_longer_plain_is_not_written(tmp_path):
    last = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"callbacks": {}}, last)
    before = last.read_bytes()
    with pytest.raises(UserError, match=r"checkpoint\['callbacks'\]\['Later'\]\['best'\] is a numpy\.float32"):
        AtomicIO().save_checkpoint({"callbacks": {"Later": {"best": np.float32(1)}}}, last)
    assert last.read_bytes() == before


def test_such_a_callback_is_refused_before_there_is_a_run_folder(tmp_path):
    with pytest.raises(UserError, match="Keeping"):
        unetseg.train(*TINY, f"data.root={tmp_path}/set", f"output={tmp_path}/runs", callbacks=[Keeping({"x": {1}})])
    assert not (tmp_path / "runs").exists()


def test_the_example_of_the_page_keeps_its_state(tmp_path):
    block = re.search(r"```python\n(# my_callback\.py\n.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)[1]
    names: dict = {}
    exec(block, names)
    options = (*TINY, f"data.root={tmp_path}/set", f"output={tmp_path}/runs", "trainer.max_epochs=1", "name=one")
    unetseg.train(*options, callbacks=[names["LowestLoss"]()])
    content = torch.load(tmp_path / "runs/one/checkpoints/last.ckpt", weights_only=True)
    assert 0 < content["callbacks"]["LowestLoss"]["lowest"] < 10
