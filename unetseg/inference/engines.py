"""Engines: whatever maps pictures to probabilities of classes, behind one interface.

A checkpoint runs in torch, an .onnx in onnxruntime, a .pt2 by torch.export. An ONNX file is data: onnxruntime runs its
own operators on it. A .pt2 is not: torch.export.load unpickles whatever the archive calls a pickle, hands its formulas
to sympy's eval, looks functions up by name and loads compiled libraries. So `refuse_code` lets pass only what
torch.export.save makes of our models. That closes every way that is known to us; it is no proof, and torch itself says
never to load such a file from an untrusted source. There, take the .onnx.

Legend: B pictures, C classes, H x W pixels.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from unetseg.errors import UserError, first_line
from unetseg.model.segmenter import Segmenter, probabilities

_ENTRY = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/\w+|archive_(format|version)|\.data/\w+|byteorder|version"
)
_FUNCTION = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|pow|neg|[lg][te]|eq|ne|getitem)"
)
_FORMULA = re.compile(
    r"(\b(Add|Mul|Pow|Mod|Max|Min|FloorDiv|CeilDiv|PythonMod|Integer|Symbol|Eq|Ne|positive|integer|True|s\d+)\b"
    r"|[\d\s'(),=+*-])*"
)
_NAME = re.compile(r"[\w.]*")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """A trained network in some runtime.

    Attributes:
        classes: names of the C classes.
        size: side of the square that pictures had in training and in every score of the model.
        value_range: by which training read pictures of more than 8 bits, see `unetseg.data.pictures.opened`.
    """

    classes: tuple[str, ...]
    size: int
    value_range: Sequence[float] | None

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB, any H and W from 32 on, to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        ...


class TorchEngine:
    """A Segmenter on a device.

    Args:
        model: in eval mode; it is moved to the device.
        classes: names of the classes.
        size: see Engine.
        device: "auto" (an accelerator if there is one), or whatever torch.device takes: "cpu", "cuda", "cuda:1".
        precision: float32 | bfloat16; bfloat16 runs the convolutions in it and gives float32 probabilities.
        value_range: see Engine.

    Raises:
        UserError: a device that isn't there, an unknown precision.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        classes: tuple[str, ...],
        size: int,
        device: str = "auto",
        precision: str = "float32",
        value_range: Sequence[float] | None = None,
    ):
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision} is not accepted", accepted=", ".join(PRECISIONS))
        self.classes = classes
        self.size = size
        self.value_range = value_range
        self.device = resolve_device(device)
        self.dtype = PRECISIONS[precision]
        try:
            self.model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is no such device
            raise UserError(f"device={device} can't be used: {error}", advice="device=cpu") from None

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(batch)
        return probabilities(logits.float()).cpu().numpy()


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the accelerator, the CPU where there is none."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name} is not accepted", accepted="auto, cpu, cuda, cuda:1, ...") from None


class OnnxEngine:
    """An exported .onnx in onnxruntime: on a GPU where onnxruntime has one, else on as many threads as torch uses.

    Args:
        content: the file.

    Raises:
        UserError: onnxruntime is not installed.
        Exception: of any kind, where the file is damaged or not ours.
    """

    def __init__(self, content: bytes):
        runtime = needed("onnxruntime")
        refuse_damage(content)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised
        available = runtime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self.session = runtime.InferenceSession(content, options, providers=providers)
        self.classes, self.size, self.value_range = metadata_of(self.session.get_modelmeta().custom_metadata_map)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        return self.session.run(["probabilities"], {"images": np.ascontiguousarray(images)})[0]


class ProgramEngine:
    """An exported .pt2, on the CPU.

    Args:
        content: the file.

    Raises:
        Exception: of any kind, where the file is damaged or not ours.
    """

    def __init__(self, content: bytes):
        refuse_code(content)
        entries = {"classes": "", "size": "", "range": ""}  # torch forgets an empty dict
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # of a damaged file torch logs a traceback before it raises
        try:
            program = torch.export.load(io.BytesIO(content), extra_files=entries)
        finally:
            logging.disable(level)
        self.program = program.module(check_guards=False)  # guards are source code
        self.classes, self.size, self.value_range = metadata_of(entries)

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWx3 uint8 RGB to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        return self.program(torch.from_numpy(np.require(images, requirements=["C", "W"]))).numpy()


READERS: dict[str, type[OnnxEngine] | type[ProgramEngine]] = {".onnx": OnnxEngine, ".pt2": ProgramEngine}


def load_exported(path: str | Path) -> Engine:
    """Load what unetseg.export has written.

    Raises:
        UserError: the file is absent, damaged or not ours, or onnxruntime is not installed.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path} is no exported model", accepted=", ".join(READERS))
    try:
        return READERS[path.suffix](path.read_bytes())
    except UserError:
        raise
    except Exception as error:  # damaged bytes fail in every way there is
        raise UserError(
            f"{path} can't be loaded: {first_line(error)}", accepted="a file that unetseg.export has written"
        ) from None


def metadata_of(entries: Mapping[str, str]) -> tuple[tuple[str, ...], int, tuple[float, float] | None]:
    """Return the names of the classes, the side of the training square and the range from a file's metadata."""
    if not entries.get("classes") or not entries.get("size"):
        raise ValueError("it doesn't say its classes and size")
    names, size = json.loads(entries["classes"]), json.loads(entries["size"])
    given = json.loads(entries.get("range") or "null")  # a file from before the option has none
    value_range = None if given is None else (float(given[0]), float(given[1]))
    return tuple(str(name) for name in names), int(size), value_range


def needed(package: str) -> Any:
    """Return a package of the extra `export`, or raise a UserError that names it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed", advice="pip install 'unetseg[export]'") from None


def seal(body: bytes) -> bytes:
    """Return a last metadata entry, sha256, of an ONNX file; to append to a protobuf message is to add to it."""
    entry = b"\x0a\x06sha256\x12\x40" + hashlib.sha256(body).hexdigest().encode()  # 1: key, 2: value
    return b"\x72" + bytes([len(entry)]) + entry  # 14: metadata_props


def refuse_damage(content: bytes) -> None:
    """Raise a ValueError where an ONNX file ends in a seal that isn't its own; onnxruntime runs whatever parses."""
    length = len(seal(b""))
    body, end = content[:-length], content[-length:]
    if b"sha256" in end and end != seal(body):
        raise ValueError(
            "its bytes don't match their checksum; if another tool has changed it, take out the metadata entry sha256"
        )


def refuse_code(content: bytes) -> None:
    """Raise a ValueError unless a .pt2 archive holds tensors and a program of torch's own operators, and no more."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        root = archive.namelist()[0].partition("/")[0]
        names = [name.removeprefix(f"{root}/") for name in archive.namelist()]
        accept(names, _ENTRY, "the entry")
        if len({name.lower() for name in names}) < len(names) or any(i.compress_type for i in archive.infolist()):
            raise ValueError("its entries are not those of torch.export.save")
        if archive.testzip() is not None:
            raise ValueError("its bytes don't match their checksum")
        for kind in ("weights", "constants"):
            payload = json.loads(archive.read(f"{root}/data/{kind}/model_{kind}_config.json"))["config"]
            if any(tensor["use_pickle"] is not False for tensor in payload.values()):
                raise ValueError("it holds pickled objects")
            accept([tensor["path_name"] for tensor in payload.values()], _NAME, "the tensor")
        torch.load(io.BytesIO(archive.read(f"{root}/data/sample_inputs/model.pt")), weights_only=True)
        strings = list(walk(json.loads(archive.read(f"{root}/models/model.json"))))
    for key, pattern in (("target", _FUNCTION), ("expr_str", _FORMULA), ("name", _NAME)):
        accept([value for name, value in strings if name == key], pattern, key)


def accept(values: list[str], pattern: re.Pattern[str], what: str) -> None:
    """Raise a ValueError that names the first value which the pattern doesn't match as a whole."""
    for value in values:
        if not pattern.fullmatch(value):
            raise ValueError(f"{what} {value[:60]!r} is not one that unetseg.export writes")


def walk(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string below a JSON value with the key under which it stands."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from walk(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value, key)
    elif isinstance(node, str):
        yield key, node
