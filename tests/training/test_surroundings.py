"""Freed memory stays with the process while a network is trained or scored, and goes back to Linux afterwards."""

import ctypes
import json
import os
import subprocess
import sys

import lightning as L
import pytest
from conftest import ROOT, TINY

import unetseg
from unetseg.training import surroundings

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's allocator"
)
PROGRAM = """
import json, os
import torch
from unetseg.training.surroundings import freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

def left(times=1):
    "MiB that the process holds more after it has made and freed a tensor of 256 MiB than before."
    before = resident()
    for _ in range(times):
        torch.ones(64 * 2**20)
    return resident() - before

left()
found, before = {"usual": left()}, resident()
with freed_memory():
    found["held"] = left()
    found["eight more"] = left(8)
    with freed_memory():
        pass
    with freed_memory(held=False):
        found["given back within"] = resident() - before + left()
    found["held again"] = left()
found["at the end"] = resident() - before + left()
print(json.dumps(found))
"""
"""In a process of its own: in another one a free block may lie in the heap's middle already."""


def found(**variables) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in surroundings.ALLOCATOR}
    words = [sys.executable, "-c", PROGRAM]
    return json.loads(subprocess.check_output(words, cwd=ROOT, env=environment | variables, text=True))


def test_freed_memory_is_held_within_the_block_and_given_back_at_its_end():
    left = found()
    assert left["held"] > 200
    assert left["eight more"] < 600  # two may lie side by side, but not eight
    assert left["held again"] > 200
    assert max(left[name] for name in ("usual", "given back within", "at the end")) < 50


def test_who_has_set_up_the_allocator_keeps_it():
    assert found(MALLOC_MMAP_THRESHOLD_="1000000")["held"] < 50


class Look(L.Callback):
    def on_train_batch_end(self, *_):
        self.held = surroundings._held


@pytest.mark.quick
def test_a_training_and_an_evaluation_hold_it(tmp_path, monkeypatch):
    for name in surroundings.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    look, scored = Look(), []
    run = unetseg.train(*TINY, f"output={tmp_path}", "trainer.max_epochs=1", callbacks=[look])
    assert look.held
    assert not surroundings._held
    score = L.Trainer.test
    monkeypatch.setattr(
        L.Trainer, "test", lambda *given, **named: scored.append(surroundings._held) or score(*given, **named)
    )
    unetseg.evaluate(checkpoint=run.folder, accelerator="cpu")
    assert scored == [True]
    assert not surroundings._held
