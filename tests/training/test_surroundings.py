"""Freed memory stays with the process while a network is trained or scored, and goes back to Linux afterwards."""

import ctypes
import functools
import json
import os
import subprocess
import sys

import lightning as L
import pytest
from conftest import ROOT, TINY

import unetseg
from unetseg.training import surroundings
from unetseg.training.surroundings import freed_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's allocator"
)
PROGRAM = """
import json, os, resource
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
    found["held still"] = resident() - before
found["at the end"] = resident() - before + left()

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2 * 2**20)
found["pages cleared"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps(found))
"""
"""In a process of its own: in another one a free block may lie in the heap's middle already."""


@functools.cache
def found(**variables) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in surroundings.ALLOCATOR}
    words = [sys.executable, "-c", PROGRAM]
    return json.loads(subprocess.check_output(words, cwd=ROOT, env=environment | variables, text=True))


def test_freed_memory_is_held_within_the_block_and_given_back_at_its_end():
    left = found()
    assert left["held"] > 200
    assert left["eight more"] < 600  # two may lie side by side, but not eight
    assert left["held still"] > 200, "the inner block has ended, the outer one hasn't"
    assert max(left[name] for name in ("usual", "at the end")) < 50


def test_tensors_of_some_megabytes_keep_their_pages_after_the_block_as_without_it():
    each = 8 * 2**20 / os.sysconf("SC_PAGESIZE")
    assert found()["pages cleared"] < 3 * each, "20 tensors of 8 MiB; with fixed thresholds each has all of its own"


def test_blocks_of_two_threads_that_overlap_hold_it_until_the_last_ends(monkeypatch):
    for name in surroundings.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    first, second = freed_memory(), freed_memory()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert surroundings._holders
    second.__exit__(None, None, None)
    assert not surroundings._holders


def test_who_has_set_up_the_allocator_keeps_it():
    assert found(MALLOC_MMAP_THRESHOLD_="1000000")["held"] < 50


class Look(L.Callback):
    def on_train_batch_end(self, *_):
        self.held = bool(surroundings._holders)


@pytest.mark.quick
def test_a_training_and_an_evaluation_hold_it(tmp_path, monkeypatch):
    for name in surroundings.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    look, scored = Look(), []
    run = unetseg.train(*TINY, f"output={tmp_path}", "trainer.max_epochs=1", callbacks=[look])
    assert look.held
    assert not surroundings._holders
    score = L.Trainer.test
    monkeypatch.setattr(
        L.Trainer, "test", lambda *given, **named: scored.append(bool(surroundings._holders)) or score(*given, **named)
    )
    unetseg.evaluate(checkpoint=run.folder, accelerator="cpu")
    assert scored == [True]
    assert not surroundings._holders
