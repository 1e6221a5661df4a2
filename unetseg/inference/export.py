"""Writes a checkpoint as a file for other runtimes, ONNX or a program of torch.export, and checks the file.

With int8 the convolutions of an ONNX file calculate in 8-bit integers, see `unetseg.inference.quantization`.

Both take `images`, BxHxWx3 uint8 RGB or BxHxWxD float32 (B, H and W are free), normalise inside, and return
`probabilities`, BxCxHxW float32. The file's metadata hold the model's classes, size and more, as JSON by name.

Legend: B pictures, C classes, K channels of logits, H x W pixels.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from unetseg.data.view import RGB, View
from unetseg.errors import UserError, first_line
from unetseg.files import drafted, read_json
from unetseg.inference.engines import READERS, Engine, OnnxEngine, OpenVinoEngine, import_extra, quiet, seal
from unetseg.inference.folding import is_plain
from unetseg.inference.quantization import Changes, changed, quantize
from unetseg.model import arguments, checkpoint, hub
from unetseg.model.segmenter import Segmenter, probabilities
from unetseg.model.skips import Fusion
from unetseg.names import DENSENETS, RESNETS, view_text
from unetseg.runs.folder import run_folder_of

TOLERANCE = 1e-3
"""How far a probability of the exported file may be from the checkpoint's."""
SHAPES = ((1, 64, 64), (2, 61, 95), (3, 32, 47))
"""B, H, W of the pictures on which every file and its checkpoint are compared."""
TRACED = (2, 70, 93)
"""B, H, W of the tracer's example: none is 1, no two levels have equal sides."""
LARGEST_ONNX = 2**31
"""Bytes; a protobuf message, which an ONNX file is, holds less."""
REMAINDERS = tuple((1, 65 + side, 65 + 13 * side % 32) for side in range(32))
"""B, H, W with each remainder by 32, the stride of the deepest level."""
FREE = {"images": {0: Dim("batch", min=1), 1: Dim("height", min=65), 2: Dim("width", min=65)}}


class Mismatch(Exception):
    """The probabilities of the exported model differ from those of the checkpoint."""


class ZeroSkip(nn.Module):
    """A fusion whose long skip carries no features (skip_flow=backward): the skip's features are zeros."""

    def __init__(self, fusion: Fusion):
        super().__init__()
        self.fusion = fusion

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Map BxDxHxW and BxSxHxW to the fusion's Bx(out_channels)xHxW."""
        return self.fusion.fuse(deep, torch.zeros_like(skip))


class PaddedPool(nn.Module):
    """A maximum over windows of which the last may be cut off (ceil_mode), over a picture whose border is repeated.

    torch.export asks that such a window begins within the picture, which it can't prove for every size. SENets have
    one. A repeated border is in the window already, so that the maximum is the same.
    """

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self.kernel_size, self.stride = cast("int", pool.kernel_size), cast("int", pool.stride)

    @staticmethod
    def stands_for(module: nn.Module) -> bool:
        """Return whether a module is such a maximum."""
        if not is_plain(module, nn.MaxPool2d) or not module.ceil_mode or module.return_indices:
            return False
        kernel, stride = module.kernel_size, module.stride
        are_square = isinstance(kernel, int) and isinstance(stride, int) and kernel >= stride
        return are_square and module.padding == 0 and module.dilation == 1

    def forward(self, features: Tensor) -> Tensor:
        """Map BxCxHxW to the maxima of the windows."""
        more = self.stride - 1
        padded = functional.pad(features, (0, more, 0, more), mode="replicate")
        return functional.max_pool2d(padded, self.kernel_size, self.stride)


class PictureModel(nn.Module):
    """A Segmenter from pictures to probabilities, without the parts that only training needs.

    These are gradients, the counters of batch normalisation, and what skip_flow and skip_gradient do to gradients; what
    skip_flow does to the features stays. The memory layout is contiguous: torch.export can't express the strides of a
    channels-last tensor of one channel (attention's gate) for every size.

    Examples:
        >>> model = PictureModel(Segmenter(classes=2, encoder="resnet18", weights=None))
        >>> model(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).shape
        torch.Size([1, 2, 64, 96])
    """

    def __init__(self, model: Segmenter):
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        self.model.memory_format = torch.contiguous_format
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.num_batches_tracked = None
        own = arguments.own_classes(cast("dict[str, Any]", model.net.config))  # which may read what a module is
        for parent in list(self.model.net.modules()):
            for name, module in parent.named_children():
                if isinstance(module, Fusion) and module.flow == "backward":
                    setattr(parent, name, ZeroSkip(module))
                elif isinstance(module, Fusion):
                    module.flow, module.gradient = "both", 1.0
                elif not own and PaddedPool.stands_for(module):
                    setattr(parent, name, PaddedPool(cast("nn.MaxPool2d", module)))

    def forward(self, images: Tensor) -> Tensor:
        """Map BxHxWxD, uint8 RGB or float32, to BxCxHxW float32 probabilities."""
        return probabilities(self.model(images.permute(0, 3, 1, 2)))


@dataclass(frozen=True)
class Checks:
    """What an export's checks have found."""

    errors: dict[str, float]
    """The largest difference between a probability of the file in float32 and of the model, by the pictures' shape."""
    changed: dict[str, Changes]
    """What int8 changes, by the runtimes that are installed."""


def export(
    model: Segmenter,
    metadata: dict[str, Any],
    output: Path,
    inputs: Sequence[np.ndarray] = (),
    others: Sequence[np.ndarray] = (),
) -> Checks:
    """Export a model to FILE.onnx or FILE.pt2; the file appears after it has been checked, or not at all.

    Args:
        model: the model, on the CPU.
        metadata: plain values by name, with `classes` (names) and `size` among them, see `engines.Engine`.
        output: the file, which is replaced if it exists.
        inputs: for int8 in an .onnx what the model gets of some pictures, see `quantization.inputs_of`; none: float32.
        others: of further pictures, on which int8 is compared with float32.

    Raises:
        Mismatch: a difference is above TOLERANCE.
        UserError: the encoder can't be exported, e.g. as it takes pictures of one size alone; int8 changes too much.
    """
    entries = {name: json.dumps(value) for name, value in metadata.items()}
    try:
        with silence_exporters():
            program = trace(PictureModel(model))
            content = WRITERS[output.suffix](program, entries)
        errors = largest_errors(content, output.suffix, model, shapes_to_check(program, View.of(metadata).side))
    except Exception as error:  # the exporters have many kinds, and each architecture its own
        encoder = model.net.encoder_name
        if own := arguments.own_classes(cast("dict[str, Any]", model.net.config)):
            raise UserError(
                f"{output.name}: a model with {', '.join(own)} can't be exported for pictures of any size "
                f"({first_line(error)})",
                accepted="classes whose operations torch.export can trace, for any H and W",
                advice="unetseg.load, which reads the checkpoint itself",
            ) from error
        if encoder in RESNETS + DENSENETS:
            raise
        raise UserError(
            f"{output.name}: the encoder {encoder} can't be exported for pictures of any size ({first_line(error)})",
            accepted="an encoder and a format that docs/encoders.md says to be exported",
            advice=f"another format ({', '.join(WRITERS)}), or unetseg.load, which reads the checkpoint itself",
        ) from None
    worst = max(errors.values())
    if not worst <= TOLERANCE:  # true for NaN as well
        raise Mismatch(f"{output.name} differs from the checkpoint by {worst:.1e}, above {TOLERANCE:.0e}: not written")
    found = {}
    if inputs:
        before, content = OnnxEngine(content), with_metadata(quantize(content, inputs), entries | {"int8": "true"})
        after: dict[str, Engine] = {"onnxruntime": OnnxEngine(content)}
        if importlib.util.find_spec("openvino"):
            after["openvino"] = OpenVinoEngine(content)
        found = {runtime: changed(before, engine, others) for runtime, engine in after.items()}
    with drafted(output) as draft:
        draft.write_bytes(content)
    return Checks(errors, found)


def save_pretrained(path: str | Path, folder: str | Path, *, trust: bool = False) -> None:
    """Write a run folder or a checkpoint as a folder of the Hugging Face Hub, see `unetseg.model.hub`.

    With `trust` the classes of somebody's own that it names are imported.

    The model card states the run's data and, where it is finished and this is the checkpoint that was tested, its
    scores on the test split. config.json also states the classes and how the model sees pictures, so that
    `unetseg.load` reads the folder.
    """
    file = checkpoint.checkpoint_file(path)
    model, hyper_parameters = checkpoint.load(file, trust=trust)
    run, data = run_folder_of(file), hyper_parameters["data"]
    scores: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a summary that is damaged has no scores
        scores = read_json(run.summary) if run is not None and run.summary.exists() else {}
    if file.name != (scores.get("checkpoint") or "best.ckpt"):
        scores = {}
    stated = {name: data[name] for name in ("name", *arguments.VIEW) if name in data}
    model.net.save_pretrained(
        folder,
        config=model.net.hub_config(data.get("mean"), data.get("std"))
        | {hub.DATA_KEY: {"classes": hyper_parameters["classes"], "data": stated}},
        dataset=f"{data['name']}, {view_text(data)}: {', '.join(hyper_parameters['classes'])}",
        metrics={name: value for name, value in scores.items() if name.startswith("test/")},
    )


def trace(model: PictureModel) -> ExportedProgram:
    """Return the model as a program whose B, H and W are free."""
    channels = model.model.mean.shape[1]
    example = torch.zeros(*TRACED, channels, dtype=torch.uint8 if channels == RGB else torch.float32)
    # What the tracer can't tell of the levels' sides, such as 2 * (H // 8) <= H // 4, is left to `shapes_to_check`,
    # where torch can leave it: older releases refuse such a model.
    leave = "prefer_deferred_runtime_asserts_over_guards"
    known: dict[str, Any] = {leave: True} if leave in signature(torch.export.export).parameters else {}
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=FREE, **known)
    # From 65 pixels on no level of any encoder is 1 pixel wide: the tracer can't tell the strides of such a tensor.
    # They change no number, so smaller pictures are accepted again; `largest_errors` checks one of 32 pixels.
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(1, int_oo)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains the paths of this machine's files
    return program


def round_up_in_integers(program: ExportedProgram) -> None:
    """Replace ceil(side / stride) in a program, which torch.export.save can't write, by (side + stride - 1) // stride.

    MobileViT computes its sides so, and encoders with the padding of TensorFlow (tf_efficientnet_b0).
    """
    graph = program.graph
    for node in [*graph.nodes]:
        quotient = node.args[0] if node.target is math.ceil else None
        if not isinstance(quotient, Node) or quotient.target is not operator.truediv:
            continue
        side, stride = quotient.args
        if not isinstance(side, Node) or not isinstance(stride, int):
            continue
        with graph.inserting_before(node):
            above = graph.call_function(operator.add, (side, stride - 1))
            whole = graph.call_function(operator.floordiv, (above, stride))
        above.meta["val"] = side.meta["val"] + (stride - 1)
        whole.meta["val"] = above.meta["val"] // stride
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
        if not quotient.users:
            graph.erase_node(quotient)
    program.graph_module.recompile()


def to_onnx(program: ExportedProgram, entries: dict[str, str]) -> bytes:
    """Return a program as an ONNX file with the entries as its metadata."""
    size = sum(weight.nbytes for weight in program.state_dict.values())
    if size >= LARGEST_ONNX:
        raise UserError(
            f"the weights take {size / 1e9:.2g} GB",
            accepted=f"less than {LARGEST_ONNX / 1e9:.2g} GB for an ONNX file",
            advice="a .pt2, which has no such limit",
        )
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=FREE,
        verbose=False,
    )
    assert onnx_program is not None
    return with_metadata(onnx_program.model_proto.SerializeToString(), entries)


def with_metadata(content: bytes, entries: dict[str, str]) -> bytes:
    """Return an ONNX file with the entries as its metadata, sealed."""
    onnx = import_extra("onnx")
    model = onnx.ModelProto.FromString(content)
    onnx.helper.set_model_props(model, entries)
    body = model.SerializeToString()
    return body + seal(body)


def to_pt2(program: ExportedProgram, entries: dict[str, str]) -> bytes:
    """Return a program as torch.export.save writes it, with the entries as extra files."""
    round_up_in_integers(program)  # here alone: the way to ONNX takes twice as long with them
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=entries)
    return buffer.getvalue()


WRITERS = {".onnx": to_onnx, ".pt2": to_pt2}


def shapes_to_check(program: ExportedProgram, side: int) -> list[tuple[int, int, int]]:
    """Return the shapes BxHxW of pictures on which file and model are compared, a square one of a side among them."""
    unproved = any(node.target is torch.ops.aten._assert_scalar.default for node in program.graph.nodes)
    return [*SHAPES, (1, side, side), *(REMAINDERS if unproved else ())]


def largest_errors(
    content: bytes, suffix: str, model: Segmenter, shapes: Iterable[tuple[int, int, int]]
) -> dict[str, float]:
    """Return the largest difference between a probability of an exported file and of its model, by shape BxHxW.

    Args:
        content: the file.
        suffix: .onnx or .pt2.
        model: in eval mode, on the CPU.
        shapes: of the pictures, see `shapes_to_check`.
    """
    engine = READERS[suffix](content)
    generator = np.random.default_rng(0)
    mean, std = (values.flatten().numpy() for values in (model.mean, model.std))
    errors = {}
    for batch, height, width in shapes:
        shape = (batch, height // 8 + 1, width // 8 + 1, len(mean))
        if len(mean) == RGB:
            patches = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            patches = (mean + std * generator.standard_normal(shape)).astype(np.float32)
        images = patches.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        with torch.inference_mode():
            expected = probabilities(model(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
        errors[f"{batch}x{height}x{width}"] = float(np.abs(engine.probabilities(images) - expected).max())
    return errors


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Silence the exporters' messages; their errors are exceptions."""
    with quiet(logging.WARNING), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
