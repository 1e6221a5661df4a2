"""Decoded squares on disk and in memory: the very batches, decoded once, whoever is killed when."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, prepared

from unetseg.data import cache, dataset
from unetseg.data.cache import Cache, cache_bytes
from unetseg.data.masks import MaskValues
from unetseg.data.pictures import Unreadable
from unetseg.data.view import View
from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train

FORK = multiprocessing.get_context("fork")
SIZE, LENGTH = 32, 20
VALUES = MaskValues(np.arange(256, dtype=np.uint8))
KINDS = ("disk", "ram")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keep the caches of each test apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "disk"))
    monkeypatch.setattr(cache, "SHARED_MEMORY", tmp_path / "ram")


@pytest.fixture
def examples(tmp_path):
    """Image and mask of each example; what they hold is never looked at."""
    pairs = [(tmp_path / f"{i}.jpg", tmp_path / f"{i}.png") for i in range(LENGTH)]
    for image, mask in pairs:
        image.write_text("picture")
        mask.write_text("mask")
    return pairs


def square(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Stand in for reading a picture."""
    return np.full((SIZE, SIZE, 3), index, np.uint8), np.full((SIZE, SIZE), 100 + index, np.uint8)


def refused(index: int) -> tuple[np.ndarray, np.ndarray]:
    pytest.fail("decoded again")


def files(kind: str) -> list[Path]:
    return [path for path in cache.cache_folder(kind).iterdir() if path.name != "lock"]


def holds_all(squares: Cache) -> bool:
    return all(
        np.array_equal(kept, made)
        for index in range(LENGTH)
        for kept, made in zip(squares[index], square(index), strict=True)
    )


# Training


def batches(drawn, *overrides: str):
    """Return the batches of two augmented training epochs and of validation."""
    options = compose("train", Train, [*TINY, f"data.root={drawn}", *overrides])
    data = prepared(options.data.model_dump())
    train = data.train_dataloader()
    found = []
    for epoch in range(2):
        train.sampler.set_epoch(epoch)
        found += list(train)
    return [*found, *data.val_dataloader()]


@pytest.fixture(scope="module")
def plain(drawn):
    return batches(drawn, "data.size=48", "data.cache=none")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache_the_batches_are_the_same_to_the_last_bit(kind, workers, drawn, plain):
    cached = batches(drawn, "data.size=48", f"data.cache={kind}", f"data.workers={workers}")
    assert len(cached) == len(plain) > 5
    for ours, theirs in zip(cached, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_second_run_decodes_nothing(drawn, plain, monkeypatch):

    batches(drawn, "data.size=48", "data.cache=disk")
    monkeypatch.setattr(dataset, "read_image", refused)
    again = batches(drawn, "data.size=48", "data.cache=disk")
    assert torch.equal(again[0].images, plain[0].images)


def room(monkeypatch, total: int, free: int | None = None) -> None:
    """Let the shared memory have this many bytes."""
    usage = SimpleNamespace(total=total, free=total if free is None else free)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage)


@pytest.mark.parametrize(("quarters", "kept"), [(4, {"train", "val"}), (3.99, {"val"})])
def test_by_itself_it_keeps_in_memory_what_takes_at_most_a_quarter_of_it(quarters, kept, drawn, plain, monkeypatch):
    room(monkeypatch, int(quarters * cache_bytes(View(48), 18)))
    options = compose("train", Train, [*TINY, f"data.root={drawn}", "data.size=48"]).data
    assert options.cache == "auto"
    data = prepared(options.model_dump())
    assert len(data.collection.splits["train"]) == 18
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    assert {split for split, loader in loaders.items() if loader.dataset.cache} == kept
    assert torch.equal(next(iter(loaders["train"])).images, plain[0].images)


def test_by_itself_it_goes_without_where_the_room_is_taken(drawn, plain, monkeypatch):
    room(monkeypatch, 10**9, free=0)
    found = batches(drawn, "data.size=48")
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in zip(found, plain, strict=True))
    assert files("ram") == []


def test_the_threads_that_decode_outlive_it_because_a_fork_must_not_meet_their_end(examples):
    decoders = set()

    def read(index):
        decoders.add(threading.current_thread())
        return square(index)

    Cache("ram", examples, VALUES, View(SIZE), read)
    assert decoders
    assert all(thread.is_alive() for thread in decoders)
    assert threading.current_thread() not in decoders


# What it was made from


@pytest.mark.parametrize(
    "change", ["picture", "picture of the same size and time", "mask", "size", "values", "reading", "order"]
)
def test_what_has_changed_is_decoded_again(change, examples):
    arguments = {"files": examples, "values": VALUES, "view": View(SIZE), "read": square}
    Cache("disk", **arguments)
    if change in ("picture", "mask"):
        path = examples[3][0] if change == "picture" else examples[3][1]
        path.write_text("another")
    elif change == "picture of the same size and time":
        path, before = examples[3][0], examples[3][0].stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    made = {
        "size": {"view": View(8), "read": lambda index: (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))},
        "values": {"values": MaskValues(VALUES.table[::-1])},
        "reading": {"values": MaskValues(VALUES.table, threshold=0)},
        "order": {"files": examples[::-1]},
    }.get(change, {})
    decoded = []

    def read(index):
        decoded.append(index)
        return (made.get("read") or square)(index)

    Cache("disk", **arguments | made | {"read": read})
    assert sorted(decoded) == list(range(LENGTH))
    replaced = change.startswith(("picture", "mask"))
    assert len(files("disk")) == (1 if replaced else 2), "what no file is any more is removed"


def test_a_picture_that_cannot_be_read_leaves_a_gap(examples):
    def read(index):
        if index == 5:
            raise Unreadable("5")
        return square(index)

    squares = Cache("disk", examples, VALUES, View(SIZE), read)
    assert squares[5] is None
    assert squares[6][1][0, 0] == 106


def test_a_process_that_is_not_forked_maps_the_file_itself(examples):
    squares = Cache("disk", examples, VALUES, View(SIZE), square)
    content = pickle.dumps(squares)
    assert len(content) < 2000
    assert holds_all(pickle.loads(content))


# Several processes, and killed ones


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_start_together_decode_each_picture_once(kind, examples, tmp_path):
    start, log = FORK.Barrier(4), tmp_path / "log"

    def rank(answers):
        def read(index):
            with log.open("a") as file:
                file.write(f"{index}\n")
            return square(index)

        start.wait()
        squares = Cache(kind, examples, VALUES, View(SIZE), read)
        answers.put(holds_all(squares))
        start.wait()  # all use it at once

    answers = FORK.SimpleQueue()
    ranks = [FORK.Process(target=rank, args=(answers,)) for _ in range(4)]
    for process in ranks:
        process.start()
    assert [answers.get() for _ in ranks] == [True] * 4
    for process in ranks:
        process.join()
    assert sorted(map(int, log.read_text().split())) == list(range(LENGTH))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_while_it_is_built_leaves_nothing_that_is_used(kind, examples):
    begun = FORK.Semaphore(0)

    def killed():
        def read(index):
            if index == LENGTH - 1:
                begun.release()
                signal.pause()
            return square(index)

        Cache(kind, examples, VALUES, View(SIZE), read)

    process = FORK.Process(target=killed)
    process.start()
    begun.acquire()
    assert [path.suffix for path in files(kind)] == [".partial"]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    squares = Cache(kind, examples, VALUES, View(SIZE), square)
    assert holds_all(squares)
    assert files(kind) == [squares.path]


# Memory is given back


def test_what_is_in_memory_is_removed_when_its_last_user_ends(examples):
    first, second = (Cache("ram", examples, VALUES, View(SIZE), read) for read in (square, refused))
    path = first.path
    del first
    assert path.exists()
    assert holds_all(second)
    del second
    assert not path.exists()


def test_a_loaders_process_removes_nothing(examples):
    squares = Cache("ram", examples, VALUES, View(SIZE), square)
    loader = FORK.Process(target=squares.__getitem__, args=(0,))
    loader.start()
    loader.join()
    assert loader.exitcode == 0
    assert squares.path.exists()


PROCESS = """
import os, sys
from pathlib import Path
import numpy as np
from unetseg.data import cache
from unetseg.data.masks import MaskValues
from unetseg.data.view import View
folder = Path(sys.argv[1])
cache.SHARED_MEMORY = folder / "ram"
square = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
files = [(folder / "0.jpg", folder / "0.png")]
kept = cache.Cache("ram", files, MaskValues(np.arange(256, dtype=np.uint8)), View(8), lambda index: square)
assert kept.path.exists()
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


def test_it_is_removed_at_the_end_of_a_process_or_if_that_is_killed_by_the_next_one(examples, tmp_path):
    def run(end: str) -> int:
        return subprocess.run([sys.executable, "-c", PROCESS, tmp_path, end], stdout=subprocess.DEVNULL).returncode

    assert run("normal") == 0
    assert files("ram") == []
    assert run("killed") == -9
    assert len(files("ram")) == 1
    squares = Cache("ram", examples, VALUES, View(SIZE), square)
    assert files("ram") == [squares.path]


# No room


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_room_is_told_with_the_bytes_needed_and_the_ways_on(kind, examples, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4321))
    with pytest.raises(UserError) as caught:
        Cache(kind, examples, VALUES, View(SIZE), refused)
    needed = cache_bytes(View(SIZE), LENGTH)
    folder = cache.cache_folder(kind)
    assert f"data.cache={kind} needs {needed:,} bytes in {folder}: 4,321 are free" in str(caught.value)
    assert {"ram": "try: data.cache=disk", "disk": "try: XDG_CACHE_HOME=FOLDER"}[kind] in str(caught.value)


def test_room_that_runs_out_meanwhile_is_told_and_given_back(examples, monkeypatch):
    monkeypatch.setattr(cache.os, "pwrite", lambda file, content, at: len(content) // 2)  # what a full disk does
    with pytest.raises(UserError, match=r"data\.cache=disk needs 81,944 bytes in .*disk/unetseg: No space left"):
        Cache("disk", examples, VALUES, View(SIZE), square)
    assert files("disk") == []


def test_a_folder_that_cannot_be_written_is_told(examples, tmp_path):
    (tmp_path / "disk").write_text("no folder")
    with pytest.raises(UserError, match=r"data\.cache=disk needs"):
        Cache("disk", examples, VALUES, View(SIZE), square)


# Files of others


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_short_is_made_anew(kind, examples):
    squares = Cache(kind, examples, VALUES, View(SIZE), square)
    path = squares.path
    del squares
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0" * 1000)
    assert holds_all(Cache(kind, examples, VALUES, View(SIZE), square))


def test_other_ranges_are_other_files(examples):
    first = Cache("disk", examples, VALUES, View(SIZE), square)
    second = Cache("disk", examples, VALUES, View(SIZE, value_range=[0, 4095]), square)
    assert first.path != second.path


@pytest.mark.parametrize("what", ["link", "open to others", "file"])
def test_shared_memory_that_somebody_else_has_made_is_not_used(what, examples, tmp_path):
    folder = cache.cache_folder("ram")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").write_text("precious")
    folder.parent.mkdir(exist_ok=True)
    if what == "link":
        folder.symlink_to(elsewhere)
    elif what == "file":
        folder.write_text("precious")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    squares = Cache("ram", examples, VALUES, View(SIZE), square)
    assert holds_all(squares)
    assert squares.path.parent not in (folder, elsewhere)
    assert squares.path.parent.stat().st_mode & 0o077 == 0
    assert (elsewhere / "lock").read_text() == "precious"
    assert Cache("ram", examples, VALUES, View(SIZE), refused).path == squares.path, "another process finds it"


def test_a_folder_that_another_process_makes_in_between_is_ours_too(examples, monkeypatch):
    private = cache.is_private

    def then_made(folder, others):
        found = private(folder, others)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return found

    monkeypatch.setattr(cache, "is_private", then_made)
    folder = cache.cache_folder("ram")
    assert folder.name == f"unetseg-{os.getuid()}"
    assert Cache("ram", examples, VALUES, View(SIZE), square).path.parent == folder


def test_a_lock_that_is_a_link_empties_no_file(examples, tmp_path):
    folder = cache.cache_folder("disk")
    folder.mkdir(mode=0o700, parents=True)
    (tmp_path / "mine").write_text("precious")
    (folder / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"data\.cache=disk needs"):
        Cache("disk", examples, VALUES, View(SIZE), square)
    assert (tmp_path / "mine").read_text() == "precious"
