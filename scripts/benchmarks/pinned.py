"""Inference whose threads are bound to a processor each, and whose threads may move, in turns.

OpenVINO binds its threads unless told not to; onnxruntime doesn't, where it is told their number as our engine does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.predict import CLASSES, segmenter
from benchmarks.report import Result
from benchmarks.ways import images_per_second, side_by_side
from unetseg.errors import UserError
from unetseg.inference.engines import read_onnx
from unetseg.inference.export import export

TIMES = 10
"""Pictures that are timed together."""


def in_onnxruntime(content: bytes, threads: int, *, bound: bool) -> Callable[[np.ndarray], object]:
    """Return a model in onnxruntime; the calling thread, the first, is never bound."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if bound:
        processors = ";".join(str(number) for number in range(2, threads + 1))
        options.add_session_config_entry("session.intra_op_thread_affinities", processors)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})


def in_openvino(content: bytes, threads: int, *, bound: bool) -> Callable[[np.ndarray], object]:
    """Return a model in OpenVINO."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": bound}
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    assert compiled.get_property("ENABLE_CPU_PINNING") == bound
    return lambda images: compiled({"images": images})


def measure(encoder: str, size: int, rounds: int) -> Result:
    """Return the images/s of single pictures, with bound threads and without."""
    if (threads := torch.get_num_threads()) < 2:
        raise UserError("one thread has nowhere to move to", accepted="OMP_NUM_THREADS=2, or more")
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        export(segmenter(encoder), {"classes": CLASSES, "size": size}, path := Path(name, "float32.onnx"))
        content, _ = read_onnx(path.read_bytes())
    kinds = {}
    for title, runtime in (("onnxruntime", in_onnxruntime), ("OpenVINO", in_openvino)):
        for bound in (False, True):
            work = runtime(content, threads, bound=bound)
            work(images)
            kinds[f"{title}, {'bound' if bound else 'free'}"] = images_per_second(lambda w=work: w(images), 1, TIMES)
    return side_by_side(kinds, rounds, f"{encoder}, one picture of {size} px, {threads} threads")
