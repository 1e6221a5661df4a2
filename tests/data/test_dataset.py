"""How many examples are kept in little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unetseg.data.dataset import Example, Listing


def test_a_listing_gives_back_its_examples():
    strange = os.fsdecode(b"caf\xe9")  # a name in no encoding
    given = [
        Example("a", Path("/images/a.jpg"), Path("/masks/a.png"), ""),
        Example("pet_größer", Path("images") / strange, Path("masks/b.png"), "pet"),
    ]
    listing = Listing.of(given)
    assert list(listing) == given
    assert len(listing) == 2
    assert list(Listing.of([])) == []


# Memory


GROWTH = """
import os, sys
from pathlib import Path
from unetseg.data.dataset import Example, Listing
from unetseg.data.pictures import read_image

def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

folder = Path(sys.argv[1])
examples = [Example(f"picture_{i}", folder / f"{i % 4}.jpg", folder / f"{i % 4}.png", "") for i in range(50_000)]
if sys.argv[2] == "listing":
    examples = Listing.of(examples)
if os.fork() == 0:  # as a loader's process is
    for i in range(100):
        read_image(examples[i].image)  # what decoders keep from the first time on
    before = private_bytes()
    for i in range(len(examples)):
        assert examples[i].name
        if i % 25 == 0:
            read_image(examples[i].image)
    print(private_bytes() - before)
else:
    os.wait()
"""


def growth(kind: str, folder: Path) -> int:
    """Return by how many bytes a forked process grows that looks at all 50,000 examples and reads some of them."""
    command = [sys.executable, "-c", GROWTH, folder, kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what a process shares")
def test_a_loaders_process_does_not_grow_with_the_number_of_pictures(tmp_path):
    for i in range(4):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{i}.jpg")
    assert growth("listing", tmp_path) < 4e6
    assert growth("list", tmp_path) > 10e6, "what a list costs each process, or this test shows nothing"
