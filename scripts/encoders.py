"""What each encoder of smp and each model of timm does in our U-Net: a table.

    python scripts/encoders.py [--only 'mit_*' 'tu-convnext*'] [--jobs 2]    # hours for all; goes on where it stopped
    python scripts/encoders.py --table docs/encoders.md                      # of the results that are kept

Each encoder has a process of its own, with pictures of 64 px, or of the one size that it takes. A row says whether

- built: a Segmenter can be made with it;
- equal: with skip=concat the network is smp.Unet: names and first weights of the same seed, outputs, gradients and
  statistics of a batch in training mode, bit for bit;
- trained: a step moves the weights, and each that isn't frozen has a gradient;
- routed: the gradient of that step is told by exit, and the shares sum to 1;
- onnx, pt2: the exported file has the model's probabilities, at several sizes.

The results lie in docs/encoders.jsonl, a line each; a property's text is empty where it holds, and says why where not.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch

from unetseg.errors import first_line
from unetseg.gradients import GradientFlow
from unetseg.inference import export
from unetseg.model import Segmenter
from unetseg.model.encoders import SIDE, own_side
from unetseg.names import ENCODERS, TIMM

Result = dict[str, Any]
PROPERTIES = ("built", "equal", "trained", "routed", "onnx", "pt2")
"""In the order in which they are measured."""
KEPT = Path(__file__).parents[1] / "docs/encoders.jsonl"
LONGEST = 200
"""Letters of a reason."""
EXAMPLES = 4
"""Encoders that are named for a reason."""


def measure(name: str) -> Iterator[Result]:
    """Give the results of one encoder, as they come."""
    yield {"built": (reason := _try(lambda: _build(name)))}
    if reason:
        return
    model = _build(name)
    encoder: Any = model.net.encoder
    side = SIDE if not _try(lambda: model(torch.zeros(1, 3, SIDE, SIDE))) else own_side(encoder)
    parameters = sum(weight.numel() for weight in encoder.parameters())
    yield {"parameters": parameters, "widths": [*encoder.out_channels[1:]], "side": side}
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    yield {"equal": _try(lambda: _compare(name, model.normalise(images)))}
    yield dict(zip(("trained", "routed"), _step(model, images), strict=True))
    model.zero_grad()  # gradients take memory that the exporters need
    yield from _exports(model.eval(), side)


def _build(name: str) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder=name, weights=None).eval()


def _try(call: Any) -> str:
    """Return why a call doesn't succeed; empty where it does."""
    try:
        call()
    except Exception as error:  # each architecture has errors of its own
        return f"{type(error).__name__}: {first_line(error)}"[:LONGEST]
    return ""


def _compare(name: str, images: torch.Tensor) -> None:
    """Raise a ValueError where the net of this encoder and smp.Unet differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of smp's names with timm-
        torch.manual_seed(0)
        theirs = smp.Unet(name, encoder_weights=None)
    ours = _build(name).net
    if [*ours.state_dict()] != [*theirs.state_dict()]:
        raise ValueError("other names of weights")
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    if not all(torch.equal(own, other) for own, other in pairs):
        raise ValueError("other first weights")
    outputs = []
    for net in (ours.to(memory_format=torch.contiguous_format), theirs):
        torch.manual_seed(1)
        outputs.append(net.train()(images.contiguous()))
        outputs[-1].square().mean().backward()
    if not torch.equal(*outputs):
        raise ValueError("other outputs")
    for (weight, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if (own.grad is None) != (other.grad is None) or (
            own.grad is not None and not torch.equal(own.grad, other.grad)
        ):
            raise ValueError(f"another gradient of {weight}")
    if not all(torch.equal(own, other) for own, other in zip(ours.buffers(), theirs.buffers(), strict=True)):
        raise ValueError("other statistics")


def _step(model: Segmenter, images: torch.Tensor) -> tuple[str, str]:
    """Take a step; return what is wrong with it, and with the routes of its gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # without states, which take memory
    before = _sums(model)  # copies would not fit beside the largest encoders
    try:
        with GradientFlow(model.train(), routes=True) as flow:
            loss = (model(images) - 1).square().mean()
            loss.backward()
            optimizer.step()
    except Exception as error:  # each architecture has errors of its own
        return f"{type(error).__name__}: {first_line(error)}"[:LONGEST], "no step"
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    without = [name for name, weight in trained if weight.grad is None]
    moved = _sums(model) != before
    problem = f"no gradient: {', '.join(without)}"[:LONGEST] if without else ""
    if not (moved and math.isfinite(loss.item())):
        problem = f"loss {loss.item()}, weights {'moved' if moved else 'unmoved'}"
    return problem, _try(lambda: _check_shares(flow))


def _sums(model: Segmenter) -> list[float]:
    return [weight.detach().double().sum().item() for weight in model.parameters()]


def _check_shares(flow: GradientFlow) -> None:
    shares = [r.value for r in flow.read() if r.kind == "exit" and r.block == "encoder" and r.metric[:6] == "share_"]
    if not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"the shares sum to {sum(shares)}")


def _exports(model: Segmenter, side: int) -> Iterator[Result]:
    """Export the model in each format, of one trace; give what is wrong with each."""
    entries = {"classes": json.dumps(["background", "object"]), "size": json.dumps(side)}
    try:
        with export.silence_exporters():
            program = export.trace(export.PictureModel(model))
            shapes = export.shapes_to_check(program, side)
    except Exception as error:  # each architecture has errors of its own
        yield dict.fromkeys(("onnx", "pt2"), f"{type(error).__name__}: {first_line(error)}"[:LONGEST])
        return

    def check(suffix: str) -> None:
        with export.silence_exporters():
            content = export.WRITERS[suffix](program, entries)
        worst = max(export.largest_errors(content, suffix, model, shapes).values())
        if not worst <= export.TOLERANCE:
            raise ValueError(f"probabilities differ by {worst:.1e}")

    for name in ("onnx", "pt2"):  # the second one changes the program
        yield {name: _try(lambda suffix=f".{name}": check(suffix))}


def _child(name: str, pipe: Any, limit: int, memory: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 1e9), int(memory * 1e9)))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))  # SIGXCPU, and not the SIGKILL of a full memory
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for part in measure(name):
        pipe.send(part)


def apart(name: str, *, limit: int, memory: float) -> Result:
    """Measure an encoder in a process of its own; where that ends early, the property it was at says so."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(name, theirs, limit, memory))
    start = time.monotonic()
    child.start()
    theirs.close()
    result: Result = {"encoder": name}
    with contextlib.suppress(EOFError):
        while True:
            result |= ours.recv()
    child.join()
    ahead = [p for p in PROPERTIES if p not in result]
    if child.exitcode and ahead:
        reason = f"its process ended with status {child.exitcode} (--memory {memory:g} GB)"
        if child.exitcode == -signal.SIGXCPU:
            reason = f"not within {limit} s of the processor"
        result[ahead[0]] = reason
    return result | {"seconds": round(time.monotonic() - start, 1)}


def families() -> dict[str, list[str]]:
    """Return the models of timm by the file that they are defined in."""
    return {module: timm.list_models(module=module) for module in timm.list_modules()}


def every_name() -> list[str]:
    """Return smp's encoders, then timm's models: the first of each family, the second, ..."""
    turns = [(place, f"{TIMM}{name}") for of_family in families().values() for place, name in enumerate(of_family)]
    return [*ENCODERS, *dict.fromkeys(name for _, name in sorted(turns))]


def read(path: Path) -> dict[str, Result]:
    """Return the results so far by encoder."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["encoder"]: result for result in map(json.loads, lines)}


def table(results: dict[str, Result]) -> str:
    """Return the page: a row for each encoder of smp and for each family of timm, and the reasons."""
    known = [results[name] for name in ENCODERS if name in results]
    rows = ["| encoder | parameters, M | channels, stride 2 ... 32 | " + " | ".join(PROPERTIES) + " |"]
    rows.append("| --- | ---: | --- |" + " :-: |" * len(PROPERTIES))
    for result in known:
        size = f"{result['parameters'] / 1e6:.1f}" if "parameters" in result else ""
        cells = [("yes" if result[p] == "" else "**no**") if p in result else "" for p in PROPERTIES]
        rows.append(
            f"| {' | '.join([result['encoder'], size, ' '.join(map(str, result.get('widths', []))), *cells])} |"
        )
    if unknown := [name for name in ENCODERS if name not in results]:
        rows += ["", f"Not measured yet of smp: {', '.join(unknown)}."]
    of_families = []
    absent = 0
    for family, names in families().items():
        own = [results[f"{TIMM}{name}"] for name in names if f"{TIMM}{name}" in results]
        absent += len(names) - len(own)
        counts = [sum(result.get(p) == "" for result in own) for p in PROPERTIES]
        if own:
            of_families.append(f"| {family} | {len(own)} of {len(names)} | {' | '.join(map(str, counts))} |")
    rows += ["", "## timm's models, by family", ""]
    if of_families:
        rows += [
            *("Of the models measured, how many have each property; a family is a file of timm.", ""),
            *("| family | measured | " + " | ".join(PROPERTIES) + " |", "| --- |" + " ---: |" * (len(PROPERTIES) + 1)),
            *(*of_families, ""),
        ]
    rows += [f"{absent} models of timm are not measured yet."] if absent else []
    reasons: dict[str, dict[str, list[str]]] = {}
    for result in results.values():
        for prop in filter(result.get, PROPERTIES):
            of_reason = reasons.setdefault(_general(result[prop], result["encoder"]), {})
            of_reason.setdefault(result["encoder"], []).append(prop)
    if reasons:
        rows += ["", "## Why not", "", "| property | encoders | reason | such as |", "| --- | ---: | --- | --- |"]
    table_of_reasons = [
        (", ".join(p for p in PROPERTIES if any(p in of_one for of_one in of_reason.values())), of_reason, reason)
        for reason, of_reason in reasons.items()
    ]
    for properties, of_reason, reason in sorted(table_of_reasons, key=lambda row: (row[0], -len(row[1]))):
        names = [*of_reason][:EXAMPLES]
        rows.append(f"| {properties} | {len(of_reason)} | {reason.replace('|', ' ')} | {', '.join(names)} |")
    return HEAD.format(smp=smp.__version__, timm=timm.__version__, torch=torch.__version__) + "\n".join(rows) + "\n"


HEAD = """# Encoders

What each encoder does in our U-Net, by `python scripts/encoders.py` (smp {smp}, timm {timm}, torch {torch}; random
weights, two pictures of 64 px, or of the one size that an encoder takes).

**built**: `model.encoder=NAME` makes a network. **equal**: with `skip=concat` it is `smp.Unet`: names, first weights,
outputs, gradients and statistics, bit for bit. **trained**: a step of training moves it, and no weight that is not
frozen is left without a gradient. **routed**: the gradient is told by exit, and the shares sum to 1. **onnx**,
**pt2**: the exported file has the probabilities of the model for pictures of any size.

## smp's encoders

"""


def _general(reason: str, name: str) -> str:
    """Return a reason without the name of the encoder, its own side and the sides as formulas."""
    reason = reason.replace(name, "NAME").replace(name.removeprefix(TIMM), "NAME")
    return re.sub(r"match model \(\d+\)", "match model (N)", re.sub(r"[\w.]*\(\(.*|\w*\(Mod\(.*", "...", reason))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of names, such as 'mit_*'")
    parser.add_argument("--results", type=Path, default=KEPT, help="is read and added to")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, of a thread each")
    parser.add_argument("--limit", type=int, default=900, help="seconds of the processor for an encoder")
    parser.add_argument("--memory", type=float, default=16, help="GB of addresses for an encoder")
    parser.add_argument("--table", type=Path, help="write the table of the results so far, and measure nothing")
    options = parser.parse_args()
    results = read(options.results)
    if options.table:
        options.table.write_text(table(results))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    wanted = [n for n in every_name() if any(fnmatch.fnmatch(n, pattern) for pattern in options.only)]
    left = [name for name in wanted if name not in results]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a") as file, ThreadPool(options.jobs) as pool:
        rows = pool.imap_unordered(lambda name: apart(name, limit=options.limit, memory=options.memory), left)
        for number, result in enumerate(rows, start=len(wanted) - len(left) + 1):
            print(json.dumps(result), file=file, flush=True)
            words = [f"{p}: {result[p] or 'yes'}" for p in PROPERTIES if p in result]
            print(f"{number}/{len(wanted)} {result['encoder']}, {result['seconds']} s: {', '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
