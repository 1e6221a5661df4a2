"""Hand damaged and forged files to what reads them: each gives a result or an error that a user understands.

python scripts/fuzz.py [--seconds 600] [--seed 0] [--output docs/fuzz.md]

Input number n of a seed is the same each time; its kinds take turns. A child process of at most 8 GB reads the inputs,
so that one that ends it, or gives no answer within a minute, is a finding like any other. Exit status 1 with findings.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 8 * 2**30
"""Bytes of address space of the child."""
PATIENCE = 60
"""Seconds for one input."""
NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
WORDS = (
    *("", "nan", "-1", "1e999", "null", "[]", "{}", "- ", "&a", "*a", "!!python/name:os.system ", "${oc.env:HOME}"),
    *(
        "../..",
        "/etc/passwd",
        "=1+1",
        '"',
        "\0",
        "\n",
        "\x1b[2J",
        "\u2028",
        "é",
        "0" * 400,
        "[" * 3000,
        "true",
        "2024-05-01",
    ),
)
"""What takes the place of a word in a text."""
VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    1e9,
    10**30,
    float("nan"),
    "",
    "resnet9999",
    "tu-hf-hub:x/y",
    [],
    [1] * 50,
    {},
    True,
    b"x",
)
"""What takes the place of a checkpoint's hyper-parameter."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: of the kind.
        file: name of the file that is mutated.
        whole: sound files.
        read: hands a file to what reads it.
        change: makes one input of a sound one.
    """

    name: str
    file: str
    whole: list[bytes]
    read: Callable[[Path], object]
    change: Callable[[bytes, np.random.Generator], bytes]


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return bytes that are cut, flipped, set to telling numbers, repeated or taken out, more often near the ends."""
    data = bytearray(content)
    for _ in range(random.integers(1, 6)):
        if not data:
            break
        reach = len(data) if random.random() < 0.5 else min(len(data), 256)
        at = int(random.integers(0, reach))
        at = len(data) - 1 - at if random.random() < 0.25 else at
        length = int(random.integers(1, 33))
        match random.integers(0, 6):
            case 0:
                del data[at:]
            case 1:
                data[at] ^= 1 << random.integers(0, 8)
            case 2:
                number = int(random.choice(NUMBERS))
                data[at : at + 4] = number.to_bytes(4, "little" if random.random() < 0.5 else "big")
            case 3:
                data[at:at] = data[at : at + length] * int(random.integers(1, 50))
            case 4:
                del data[at : at + length]
            case _:
                data[at : at + length] = random.bytes(length)
    return bytes(data)


def reworded(content: bytes, random: np.random.Generator) -> bytes:
    """Return a text in which words or lines are others, repeated or gone; sometimes its bytes are damaged as well."""
    lines = content.decode().splitlines(keepends=True)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(0, len(lines)))
        parts = lines[at].replace(":", " : ").replace(",", " , ").split(" ")
        match random.integers(0, 4):
            case 0:
                parts[random.integers(0, len(parts))] = str(random.choice(WORDS))
                lines[at] = " ".join(parts).replace(" : ", ":").replace(" , ", ",")
            case 1:
                lines[at] *= int(random.integers(0, 4))
            case 2:
                lines[at] = lines[int(random.integers(0, len(lines)))]
            case _:
                lines[at] = lines[at][: int(random.integers(0, len(lines[at]) + 1))]
    text = "".join(lines).encode("utf-8", "replace")
    return damaged(text, random) if random.random() < 0.2 else text


def reparametrised(content: bytes, random: np.random.Generator) -> bytes:
    """Return a checkpoint of which a hyper-parameter or a weight is another; else damaged bytes."""
    import torch

    if random.random() < 0.5:
        return damaged(content, random)
    checkpoint: Any = torch.load(io.BytesIO(content), weights_only=True)
    known = checkpoint["hyper_parameters"]
    section = known if random.random() < 0.3 else known[str(random.choice(["model", "data"]))]
    key = str(random.choice(list(section)))
    section[key] = VALUES[random.integers(0, len(VALUES))]
    if random.random() < 0.2:
        checkpoint[str(random.choice(list(checkpoint)))] = VALUES[random.integers(0, len(VALUES))]
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getvalue()


def remodelled(content: bytes, random: np.random.Generator) -> bytes:
    """Return an ONNX file of which a part of the graph is another; sometimes damaged bytes."""
    import onnx

    if random.random() < 0.2:
        return damaged(content, random)
    model = onnx.ModelProto.FromString(content)
    node = model.graph.node[random.integers(0, len(model.graph.node))]
    tensor = model.graph.initializer[0]
    match random.integers(0, 6):
        case 0:
            node.op_type = str(random.choice(["Conv", "Loop", "If", "Resize", "ConstantOfShape", "Gather", "x"]))
        case 1:
            for attribute in node.attribute:
                attribute.i = int(random.choice(NUMBERS))
                attribute.ints.append(int(random.choice(NUMBERS)))
        case 2:
            tensor.dims[random.integers(0, 4)] = int(random.choice(NUMBERS))
        case 3:
            tensor.raw_data = random.bytes(24)
        case 4:
            entry = model.metadata_props[random.integers(0, 2)]
            entry.value = str(random.choice([*WORDS, "64", "1000000000", '["a"]', "[1, 2]"]))
        case _:
            node.input[0] = str(random.choice(["images", "w", "logits", ""]))
    return model.SerializeToString()


def kinds(folder: Path) -> list[Kind]:
    """Return all kinds; files that stand beside the mutated ones are written into the folder."""
    return [*pictures(), *models(), *texts(folder)]


def pictures() -> Iterator[Kind]:
    """Yield pictures and masks."""
    import tifffile
    from PIL import Image

    from unetseg.data.folder import value_table
    from unetseg.data.masks import read_mask
    from unetseg.data.pictures import open_picture

    colour = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
        file = io.BytesIO()
        Image.fromarray(colour).convert(mode).save(file, kind, **options)
        return file.getvalue()

    def tiff(**options: Any) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, colour, photometric="rgb", **options)
        return file.getvalue()

    def whole(path: Path) -> np.ndarray:
        with open_picture(path) as picture:
            return picture.rows(0, min(picture.height, 2000))

    exif = Image.Exif()
    exif[274] = 6
    formats = {
        "TIFF": [tiff(), tiff(tile=(16, 16), compression="zlib"), tiff(rowsperstrip=7), encoded("TIFF", "CMYK")],
        "JPEG": [encoded("JPEG", exif=exif), encoded("JPEG", progressive=True), encoded("JPEG", "CMYK")],
        "PNG": [encoded("PNG"), encoded("PNG", "RGBA"), encoded("PNG", "P")],
        "WebP": [encoded("WEBP"), encoded("WEBP", "RGBA", lossless=True)],
        "GIF, BMP": [encoded("GIF", "P"), encoded("BMP")],
    }
    for name, files in formats.items():
        yield Kind(name, f"picture.{name[:3].lower()}", files, whole, damaged)
    colour = colour // 128
    masks = [encoded("PNG", "L"), encoded("PNG", "1"), encoded("BMP", "L")]
    yield Kind("mask", "mask.png", masks, lambda path: read_mask(path, value_table(2, None)), damaged)


def models() -> Iterator[Kind]:
    """Yield checkpoints and ONNX files."""
    import torch
    from onnx import TensorProto, helper

    import unetseg
    from unetseg.model import checkpoint
    from unetseg.model.segmenter import Segmenter
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.training import build

    options = compose("train", Train, ["data=synthetic", "model.encoder=resnet18", "model.weights=null"])
    known = build.hyper_parameters(options)
    state = Segmenter(weights=None, **known["model"]).state_dict()
    weights = {f"{checkpoint.PREFIX}{name}": value for name, value in state.items()}
    file = io.BytesIO()
    torch.save({"hyper_parameters": known, "state_dict": weights}, file)
    yield Kind("checkpoint", "model.ckpt", [file.getvalue()], checkpoint.load, reparametrised)

    kernel = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 1, 1], np.ones(6, np.float32).tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    ends = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", "h", "w", 3]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["b", 2, "h", "w"]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"classes": '["a", "b"]', "size": "64"})
    picture = np.zeros((40, 50, 3), np.uint8)
    onnx = [model.SerializeToString()]
    yield Kind("ONNX", "model.onnx", onnx, lambda path: unetseg.load(path)(picture), remodelled)


def texts(folder: Path) -> Iterator[Kind]:
    """Yield tables and options of run folders, and split files."""
    import yaml
    from PIL import Image

    from unetseg.data import folder as own_pictures
    from unetseg.data.splits import Drawing
    from unetseg.inference.outputs import Outputs
    from unetseg.options import recorded
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.reporting import results, scores

    def table(columns: str, rows: list[str]) -> bytes:
        return "\n".join([columns, *rows, ""]).encode()

    config = yaml.safe_dump(compose("train", Train, ["data=synthetic"]).model_dump(), sort_keys=False).encode()
    summary = {"test/iou": 0.5, "test/images": 3, "epochs": 2, "seconds": 3.5, "parameters": 10, "versions": {}}
    sound = {
        "config.yaml": config,
        "summary.json": json.dumps(summary, indent=2).encode(),
        "per_image.csv": table("name,group,iou,dice,boundary_iou", [f"a{i},g,0.{i}5,0.6,0.4" for i in range(3)]),
        "metrics.csv": table("step,epoch,name,value", [f"{i},{i},val/iou,0.{i}" for i in range(2)]),
        "edge_distance.csv": table("from_px,to_px,pixels,errors,error_rate", ["1,1,10,5,0.5", "2,inf,20,5,0.25"]),
        "gradient_flow.csv": table("step,epoch,kind,block,metric,value", ["0,0,skip,level1,skip_share,0.5"]),
    }

    def run_with(path: Path) -> Path:
        run = path.parent / "run"
        run.mkdir(exist_ok=True)
        for name, content in sound.items():
            (run / name).write_bytes(path.read_bytes() if name == path.name else content)
        return run

    def reported(path: Path) -> object:
        sweep = results.read(run_with(path))
        return scores.ranked_images(sweep), [scores.curve(setting, "val/iou") for setting in sweep.settings]

    for name, content in sound.items():
        yield Kind(f"report: {name}", name, [content], reported, reworded)
    yield Kind("run folder: config.yaml", "config.yaml", [config], recorded.read_training, reworded)

    own = folder / "own"
    for part in ("images", "masks"):
        (own / part).mkdir(parents=True, exist_ok=True)
        for name in "abc":
            Image.new("L", (40, 40)).save(own / part / f"{name}.png")

    def split(path: Path) -> object:
        for name, member in (("train", "a"), ("val", "b"), ("test", "c")):
            (own / f"{name}.txt").write_text(f"{member}\n")
        (own / "train.txt").write_bytes(path.read_bytes())
        return own_pictures.load(own, classes=("x", "y"), drawing=Drawing())

    yield Kind("split file", "train.txt", [b"a\n", b"a.png\nimages/d.png\n"], split, reworded)

    def predictions(path: Path) -> object:
        return Outputs(path.parent, ("x", "y"), overlay=False, probability=False, overwrite=False).rows

    rows = io.StringIO()
    header = ["picture", "mask", "width", "height", "seconds", "share_x", "share_y"]
    csv.writer(rows).writerows([header, ["a.jpg", "a.png", 1, 1, 0.1, 0.5, 0.5]])
    yield Kind("predictions.csv", "predictions.csv", [rows.getvalue().encode()], predictions, reworded)


def tried(kind: Kind, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """Return what became of an input: result, refused, or finding, with a line on it."""
    from unetseg.errors import Halt, UserError

    random = np.random.default_rng([seed, number])
    content = kind.change(kind.whole[random.integers(0, len(kind.whole))], random)
    place = folder / "input"
    place.mkdir(exist_ok=True)
    for left in place.glob("*.csv"):
        left.unlink()
    path = place / kind.file
    path.write_bytes(content)
    try:
        kind.read(path)
    except (UserError, Halt) as error:
        return ("refused", str(error)) if str(error).strip() else ("finding", "an error without a message")
    except BaseException as error:  # a decoder's own kinds, too
        return "finding", f"{type(error).__name__}: {str(error)[:150]}".replace("\n", " ")
    return "result", ""


def child(seed: int, first: int, folder: Path) -> None:
    """Read inputs from number `first` on, and say of each first that it comes, then what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    every = kinds(folder)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    for number in range(first, sys.maxsize):
        kind = every[number % len(every)]
        print(json.dumps([number, kind.name]), file=said, flush=True)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        print(json.dumps(tried(kind, number, seed, folder)), file=said, flush=True)
        faulthandler.cancel_dump_traceback_later()


def fuzz(seconds: float, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Return how often each kind came to what, and the findings."""
    counts: Counter[tuple[str, str]] = Counter()
    findings: list[str] = []
    end, first = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            command = [sys.executable, __file__, "--seed", str(seed), "--child", str(first), folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
                assert process.stdout is not None
                kind, outcome = "start", ("finding", "")
                for line in process.stdout:
                    first, kind = json.loads(line)
                    answer = process.stdout.readline()
                    outcome = tuple(json.loads(answer)) if answer else ("finding", "the process died, or no answer")
                    counts[kind, outcome[0]] += 1
                    if outcome[0] == "finding":
                        findings.append(f"{kind}, input {first} of seed {seed}: {outcome[1]}")
                    first += 1
                    if time.monotonic() >= end:
                        process.kill()
                        break
                else:
                    if kind == "start":
                        raise SystemExit("the child can't start")
    return counts, findings


def as_markdown(counts: Counter[tuple[str, str]], findings: list[str], seconds: float, seed: int) -> str:
    """Return the table of a run and its command."""
    outcomes = ("result", "refused", "finding")
    rows = [
        [kind, *(str(counts[kind, outcome]) for outcome in outcomes)] for kind in dict.fromkeys(k for k, _ in counts)
    ]
    rows.append(["all", *(str(sum(n for (_, of), n in counts.items() if of == outcome)) for outcome in outcomes)])
    lines = [
        "# Damaged and forged files",
        "",
        "Mutated files, each handed to what reads it. *Result*: it was read; *refused*: an error that says what is "
        "accepted; *finding*: anything else, such as a traceback, a dead process, or no answer within a minute.",
        "",
        f"    python scripts/fuzz.py --seconds {seconds:g} --seed {seed}",
        "",
        "| kind | result | refused | finding |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join([*lines, *([""] if findings else []), *(f"- {finding}" for finding in findings), ""])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.seed, int(given.child[0]), Path(given.child[1]))
    counts, findings = fuzz(given.seconds, given.seed)
    text = as_markdown(counts, findings, given.seconds, given.seed)
    print(text)
    if given.output:
        given.output.write_text(text)
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
