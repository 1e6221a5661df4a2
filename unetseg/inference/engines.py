"""Engines map pictures to probabilities of classes, in several runtimes behind one interface.

A checkpoint runs in torch, an .onnx in onnxruntime or OpenVINO, a .pt2 by torch.export. An ONNX file is data: both run
their own operators on it, and tensors in other files are refused. A .pt2 is a program: torch imports, unpickles and
calls whatever the file names, and no check of the file can rule that out. It is opened only if the user says that the
file is trusted.

Legend: B pictures, C classes, H x W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from unetseg.data.view import View
from unetseg.errors import UserError, first_line
from unetseg.inference.folding import folded
from unetseg.model import archive, arguments
from unetseg.model.segmenter import Segmenter, probabilities
from unetseg.names import LARGEST_SIZE

MOST_CLASSES = 254
"""Masks have a byte a pixel."""
METADATA = ("classes", *arguments.VIEW)
"""What a file must say, or may say, of its model."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RUNTIMES = ("onnxruntime", "openvino")
"""Of an .onnx."""
EXPORT = "python -m unetseg.export checkpoint=RUN output=model.onnx"
"""What writes one."""


class Engine(Protocol):
    """A trained network in some runtime.

    Attributes:
        classes: names of the C classes.
        view: how the model saw pictures in training and for every score.
    """

    classes: tuple[str, ...]
    view: View

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD, any H and W from 32 on, to BxCxHxW float32 in 0..1 that sums to 1 over C.

        The D channels are RGB in uint8, or what the view says in float32.
        """


class TorchEngine:
    """A Segmenter on a device, with batch normalisation folded into the convolutions.

    Args:
        model: in eval mode; a copy of it is used, unless it has a class of somebody's own.
        classes: names of the classes.
        view: see Engine.
        device: "auto" (an accelerator if there is one), or a name that torch.device takes: "cpu", "cuda", "cuda:1".
        precision: float32 | bfloat16; bfloat16 runs the convolutions in it and gives float32 probabilities.

    Raises:
        UserError: the device does not exist, or the precision is unknown.

    Examples:
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None).eval()
        >>> engine = TorchEngine(model, classes=("background", "pet"), view=View(64), device="cpu")
        >>> engine.probabilities(np.zeros((1, 64, 96, 3), np.uint8)).shape
        (1, 2, 64, 96)
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        classes: tuple[str, ...],
        view: View,
        device: str = "auto",
        precision: str = "float32",
    ):
        check_precision(precision)
        self.classes = classes
        self.view = view
        self.device = resolve_device(device)
        self.dtype = PRECISIONS[precision]
        whole = folded(model)
        try:
            self.model = whole.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises both where there is no such device
            raise UserError(f"device={device} can't be used: {error}", advice="device=cpu") from None

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(batch)
        return probabilities(logits.float()).cpu().numpy()


def resolve_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the accelerator, or the CPU if there is none."""
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
        UserError: onnxruntime or onnx is not installed.
        Exception: of any kind, if the file is damaged or was not written by unetseg.export.
    """

    def __init__(self, content: bytes):
        runtime = import_extra("onnxruntime")
        content, entries = read_onnx(content)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised
        available = runtime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self.session = runtime.InferenceSession(content, options, providers=providers)
        self.classes, self.view = parse_metadata(entries)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        with explain_failure(images):
            return self.session.run(["probabilities"], {"images": np.ascontiguousarray(images)})[0]


class OpenVinoEngine:
    """An exported .onnx in OpenVINO, on the CPU, on as many threads as torch uses.

    Args:
        content: the file.
        precision: of the arithmetic: float32, or bfloat16 where the CPU has it. Convolutions that an export has made
            int8 are int8 with both.

    Raises:
        UserError: openvino or onnx is not installed, or the precision is unknown.
        Exception: of any kind, if the file is damaged or was not written by unetseg.export.
    """

    def __init__(self, content: bytes, precision: str = "float32"):
        check_precision(precision)
        core = import_extra("openvino").Core()
        content, entries = read_onnx(content)
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = core.compile_model(core.read_model(content), "CPU", settings)
        self.classes, self.view = parse_metadata(entries)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        with explain_failure(images):
            return self.compiled({"images": np.ascontiguousarray(images)})["probabilities"]


class ProgramEngine:
    """An exported .pt2, on the CPU; to load it is to run it as a program.

    Args:
        content: the file.

    Raises:
        Exception: of any kind, if the file is damaged or was not written by unetseg.export.
    """

    def __init__(self, content: bytes):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip() is not None:  # torch runs whatever it can parse
                raise ValueError("its bytes don't match their checksum")
        entries = dict.fromkeys(METADATA, "")  # torch forgets an empty dict
        with quiet(logging.CRITICAL):  # on a damaged file torch logs a traceback before it raises
            program = torch.export.load(io.BytesIO(content), extra_files=entries)
        self.program = program.module(check_guards=False)  # guards are source code that would be run
        self.classes, self.view = parse_metadata(entries)

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD to BxCxHxW float32 in 0..1 that sums to 1 over C."""
        return self.program(torch.from_numpy(np.require(images, requirements=["C", "W"]))).numpy()


READERS: dict[str, type[OnnxEngine] | type[ProgramEngine]] = {".onnx": OnnxEngine, ".pt2": ProgramEngine}


def load_exported(
    path: str | Path, *, trust: bool = False, runtime: str = "onnxruntime", precision: str = "float32"
) -> Engine:
    """Load a file that unetseg.export has written.

    Args:
        path: an .onnx, or a .pt2.
        trust: whether the file's author may run any program on this machine; a .pt2 is not opened otherwise.
        runtime: of an .onnx: onnxruntime | openvino.
        precision: float32; openvino also has bfloat16.

    Raises:
        UserError: the file does not exist, is damaged or is of another origin, a .pt2 isn't trusted, the runtime isn't
            installed, or doesn't take this kind of file or precision.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix not in READERS:
        raise UserError(f"{path} is no exported model", accepted=", ".join(READERS))
    if runtime not in RUNTIMES:
        raise UserError(f"runtime={runtime} is not accepted", accepted=", ".join(RUNTIMES))
    if runtime == "openvino" and path.suffix != ".onnx":
        raise UserError(f"runtime=openvino with {path}", accepted="an .onnx", advice=EXPORT)
    if precision != "float32" and runtime != "openvino":
        raise UserError(
            f"precision={precision} with {path}",
            accepted="float32: onnxruntime and torch.export run a file in the precision of its export",
            advice=("the checkpoint", "runtime=openvino with an .onnx"),
        )
    if path.suffix == ".pt2" and not trust:
        raise UserError(
            f"{path} is a program: opening it may run any code that its author put into it, with all your rights",
            accepted="a .pt2 that you exported yourself or would run as a program, with trust=true",
            advice=("trust=true", "the checkpoint or an .onnx of it, which are data"),
        )
    try:
        archive.check_size(path)
        content = path.read_bytes()
        return OpenVinoEngine(content, precision) if runtime == "openvino" else READERS[path.suffix](content)
    except UserError:
        raise
    except Exception as error:  # damaged bytes fail in every way there is
        raise UserError(
            f"{path} can't be loaded: {first_line(error)}", accepted="a file that unetseg.export has written"
        ) from None


def parse_metadata(entries: Mapping[str, str]) -> tuple[tuple[str, ...], View]:
    """Return the names of the classes and the view from a file's metadata; older files state less of the view."""
    if not entries.get("classes") or not entries.get("size"):
        raise ValueError("it doesn't say its classes and size")
    stated = {name: json.loads(entries[name]) for name in METADATA if entries.get(name)}
    names, _ = check_metadata(stated.pop("classes"), stated["size"])
    arguments.check_view(stated)
    return names, View.of(stated)


def check_metadata(classes: object, size: object) -> tuple[tuple[str, ...], int]:
    """Return a file's classes and size, or raise a ValueError if no model can have these."""
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"it has {len(classes)} classes, not 1 to {MOST_CLASSES}")
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"its size is no whole number from 1 to {LARGEST_SIZE}")
    return tuple(classes), size


def check_precision(precision: str) -> None:
    """Raise a UserError for a precision that no engine has."""
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision} is not accepted", accepted=", ".join(PRECISIONS))


@contextlib.contextmanager
def explain_failure(images: np.ndarray) -> Iterator[None]:
    """Raise a UserError where a runtime can't run a model on pictures; their exceptions share no base class."""
    try:
        yield
    except Exception as error:
        raise UserError(f"the model can't be run on pictures of shape {images.shape}: {first_line(error)}") from None


@contextlib.contextmanager
def quiet(level: int) -> Iterator[None]:
    """Silence all loggers up to a level."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def import_extra(package: str) -> Any:
    """Import a package of an extra; raise a UserError that names the extra if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        extra = "openvino" if package == "openvino" else "export"
        raise UserError(f"{package} is not installed", advice=f"pip install 'unetseg[{extra}]'") from None


def read_onnx(content: bytes) -> tuple[bytes, dict[str, str]]:
    """Check and parse an ONNX file; return it serialised again, and its metadata.

    A runtime gets the bytes of the checked message, so that it can't parse the original bytes in another way.

    Raises:
        UserError: onnx is not installed.
        ValueError: the file is damaged, or a tensor's numbers lie in another file.
    """
    refuse_damage(content)
    onnx = import_extra("onnx")
    model = onnx.ModelProto.FromString(content)
    model.DiscardUnknownFields()
    if any(tensor.external_data or tensor.data_location for tensor in iterate_messages(model, onnx.TensorProto)):
        raise ValueError("the numbers of a tensor lie in another file, which unetseg.export never writes")
    return model.SerializeToString(), {entry.key: entry.value for entry in model.metadata_props}


def iterate_messages(message: Any, kind: type) -> Iterator[Any]:
    """Yield every message of a type in a protobuf message, at any depth."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from iterate_messages(part, kind)


def seal(body: bytes) -> bytes:
    """Return the metadata entry sha256 of an ONNX file; bytes that are appended to a protobuf message add to it."""
    entry = b"\x0a\x06sha256\x12\x40" + hashlib.sha256(body).hexdigest().encode()  # 1: key, 2: value
    return b"\x72" + bytes([len(entry)]) + entry  # 14: metadata_props


def refuse_damage(content: bytes) -> None:
    """Raise a ValueError if an ONNX file ends in a seal that isn't its own; onnxruntime runs whatever it can parse."""
    length = len(seal(b""))
    body, end = content[:-length], content[-length:]
    if b"sha256" in end and end != seal(body):
        raise ValueError(
            "its bytes don't match their checksum; if another tool has changed it, take out the metadata entry sha256"
        )
