"""Reads tensors from files that may be a stranger's, or damaged: as data, complete, and within bounds."""

from __future__ import annotations

import io
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

LARGEST = 4 * 2**30
"""Most bytes of a file that is read; the largest encoder with its optimizer's state takes a fifth."""
LARGEST_PICKLE = 4 * 2**20
"""Most bytes of the part that names the tensors; ours have some hundred thousand."""
PLAIN = re.compile(
    r"collections OrderedDict|torch(\.cuda)? [A-Z]\w*Storage|torch\.nn\.parameter Parameter"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch b?float(16|32|64)"
)
"""Functions that a file of tensors calls by name, and number formats. weights_only=True allows more, such as a
bytearray of any length."""
LEGACY_PICKLES = 5
"""Pickles before the tensors' bytes in a file from before PyTorch 1.6, such as torchvision's."""


def load(path: Path) -> Any:
    """Return the content of a file that torch.save has written, on the CPU.

    Raises:
        ValueError, RuntimeError, OSError or another error of damaged bytes: it can't be read as tensors and plain
            values, is compressed, larger than LARGEST, or differs from its own checksums.
    """
    with path.open("rb") as file:
        check_size(path)
        content: IO[bytes] = file
        if file.read(4) == b"PK\x03\x04":
            content = verified_copy(file)
        else:
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                check_names(file)
            file.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)


def verified_copy(file: IO[bytes]) -> io.BytesIO:
    """Return a copy of a zip archive whose records have the lengths and checksums that it states.

    Torch must read the copy: of an archive that holds two lists of records it may take another one than Python.
    """
    copy = io.BytesIO()
    size = os.fstat(file.fileno()).st_size
    copy.seek(size)
    copy.write(b"\0")  # takes the memory at once, and not in growing pieces that are copied
    copy.seek(0)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as whole:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its records are compressed, which those of a checkpoint never are")
        if len(names) < len(entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("its records overlap")
        for entry in entries:
            content = archive.read(entry)  # which compares the checksum
            if entry.filename.rpartition("/")[2] == "data.pkl":
                if len(content) > LARGEST_PICKLE:
                    raise ValueError(f"it names more than {LARGEST_PICKLE >> 20} MiB of tensors")
                check_names(io.BytesIO(content))
            whole.writestr(entry.filename, content)
    copy.truncate()
    copy.seek(0)
    return copy


def check_names(pickle: IO[bytes]) -> None:
    """Raise a ValueError where a pickle calls a function that no file of tensors needs; nothing of it is run."""
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not PLAIN.fullmatch(str(argument)):
            raise ValueError(f"it calls {str(argument)[:80]!r}, and holds more than tensors and plain values")


def check_size(path: Path) -> None:
    """Raise a ValueError where a file is larger than LARGEST."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 30} GiB")


def state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a file that torch.save has written, by their names.

    Raises:
        ValueError or as `load`: it is no state dict, or a tensor in it is sparse or without values.
    """
    check_size(path)
    state = load_file(path) if path.suffix == ".safetensors" else load(path)
    if not isinstance(state, dict) or not state:
        raise ValueError(f"it holds {type(state).__name__}, not tensors by name")
    check_dense(state)
    return state


def check_dense(state: dict[Any, Any]) -> None:
    """Raise a ValueError where a state dict holds anything but dense tensors under names."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{str(name)[:80]!r} is {type(value).__name__}, not a tensor under a name")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"{name[:80]} is no dense tensor")


def check_finite(state: dict[str, Tensor]) -> None:
    """Raise a ValueError where a tensor holds NaN or infinity: such a network would predict one class everywhere."""
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity")
