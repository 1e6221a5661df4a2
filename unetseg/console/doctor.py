"""What this machine has, and what is missing: versions, devices, caches, network, disk.

unetseg doctor        status 1 where something that unetseg needs is missing or too old, otherwise 0
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import unetseg
from unetseg.huggingface import TIMEOUT
from unetseg.names import PETS_ROOT

LEFT = 28
"""Columns of the names."""
MARKS = {"ok": "  ", "note": "? ", "missing": "! "}


@dataclass(frozen=True)
class Finding:
    """A line of the output."""

    name: str
    text: str
    state: str = "ok"
    """ok; note: some option won't work; missing: nothing works without it."""


def main(arguments: Sequence[str]) -> int:
    """Print what is here and what is missing; return the exit status."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments:
        print(
            f"unetseg doctor: {arguments[0]} is not an option\n  accepted: none\n  try: unetseg doctor", file=sys.stderr
        )
        return 2
    needed = 0
    for title, findings in (
        ("versions", versions()),
        ("extras", extras()),
        ("devices", devices()),
        ("data and caches", caches()),
        ("network", network()),
        ("disk", disk()),
    ):
        print(title, flush=True)
        for finding in findings:
            print(f"{MARKS[finding.state]}{finding.name:{LEFT}} {finding.text}", flush=True)
            needed += finding.state == "missing"
    print("\n! is needed" if needed else "\nall that is needed is here", end="; ? matters for some options only\n")
    return 1 if needed else 0


def requirements() -> Iterator[tuple[str, str, str]]:
    """Yield each requirement of unetseg: the package, its accepted versions (">=2.5,<3"), its extra or ""."""
    for requirement in map(Requirement, requires("unetseg") or []):
        extra = re.search(r"extra == ['\"]([\w-]+)", str(requirement.marker))
        yield requirement.name, str(requirement.specifier), extra[1] if extra else ""


def versions() -> Iterator[Finding]:
    """Yield the versions of Python and of what unetseg needs, and say where one is missing or doesn't fit."""
    yield Finding("unetseg", f"{unetseg.__version__} in {Path(unetseg.__file__).parent}")
    python = platform.python_version()
    fits = (3, 11) <= sys.version_info < (3, 14)
    yield Finding("python", python if fits else f"{python}: 3.11 to 3.13 is needed", "ok" if fits else "missing")
    for name, accepted, extra in requirements():
        if not extra:
            yield _package(name, accepted)


def extras() -> Iterator[Finding]:
    """Yield each extra: complete, or the command that brings it."""
    packages: dict[str, list[tuple[str, str]]] = {}
    for name, accepted, extra in requirements():
        if extra and extra != "dev":
            packages.setdefault(extra, []).append((name, accepted))
    for extra, members in packages.items():
        lacking = [name for name, accepted in members if _package(name, accepted).state != "ok"]
        if lacking:
            yield Finding(extra, f"{', '.join(lacking)} missing: pip install 'unetseg[{extra}]'", "note")
        else:
            yield Finding(extra, ", ".join(f"{name} {version(name)}" for name, _ in members))


def _package(name: str, accepted: str) -> Finding:
    try:
        number = version(name)
    except PackageNotFoundError:
        return Finding(name, f"missing: pip install '{name}{accepted}'", "missing")
    if SpecifierSet(accepted).contains(number, prereleases=True):
        return Finding(name, number)
    return Finding(name, f"{number}: {accepted} is needed, pip install '{name}{accepted}'", "missing")


def devices() -> Iterator[Finding]:
    """Yield the CPU, memory, GPUs and the compiler."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("CPU", f"{_cpu_name()}, {cores} cores, {_gigabytes(memory)} of memory")
    try:
        import torch
    except Exception as error:  # a build for another machine fails in many ways
        yield Finding("torch", f"can't be imported: {error}", "missing")
        return
    from unetseg.training.precision import LEAST_GAIN, bfloat16_gain, has_bfloat16

    effect = "none: training computes in float32 there"
    if has_bfloat16():
        gain = bfloat16_gain()
        default = "used" if gain >= LEAST_GAIN else "not used"
        effect = f"{gain:.1f} times as fast as float32, {default} by default"
    yield Finding("bfloat16 of the CPU", effect)
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Finding(f"GPU {number}", f"{about.name}, {_gigabytes(about.total_memory)}, CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        text = "torch sees none, though nvidia-smi is there: is this torch a CPU build?" if driver else "none"
        yield Finding("GPU", text, "note" if driver else "ok")
    compiler = os.environ.get("CXX", "g++")
    found = shutil.which(compiler)
    yield Finding("C++ compiler", found or f"{compiler} is missing: compile=true won't work", "ok" if found else "note")


def _cpu_name() -> str:
    """Return the CPU's name, as Linux has it, or its kind."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return name[1] if name else platform.processor() or platform.machine()


def caches() -> Iterator[Finding]:
    """Yield where Oxford-IIIT Pet and downloaded weights lie, and their sizes."""
    from unetseg.training import preflight

    here = preflight.pets_are_here()
    text = f"at {PETS_ROOT}" if here else f"not at {PETS_ROOT}: 0.8 GB are downloaded, or data.root=FOLDER"
    yield Finding("Oxford-IIIT Pet", text, "ok" if here else "note")
    hub = preflight.hub_cache()
    weights = sorted(path.name.removeprefix("models--smp-hub--") for path in hub.glob("models--smp-hub--*"))
    size = f", {_gigabytes(_size(hub))}" if hub.is_dir() else ", not there yet"
    yield Finding("weights of encoders", f"{hub}{size}: {', '.join(weights) or 'none of smp'}")
    torch_hub = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    if torch_hub.is_dir():
        yield Finding("torch's cache", f"{torch_hub}, {_gigabytes(_size(torch_hub))}")


def network() -> Iterator[Finding]:
    """Yield whether the hosts of weights and data answer, and the variables that keep from asking."""
    from unetseg.training import preflight

    offline = [name for name in ("HF_HUB_OFFLINE", "WANDB_MODE", "HF_ENDPOINT") if name in os.environ]
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy")]
    for name in [*offline, *proxies]:
        yield Finding(name, os.environ[name] if name in offline else "is set")
    endpoint = os.environ.get("HF_ENDPOINT", preflight.HUB)
    hub_is_asked = not preflight.hub_is_offline()
    for host, use in ((endpoint, "model.weights=imagenet"), (preflight.PETS_HOST, "the download of data=pets")):
        asked = hub_is_asked or host != endpoint
        answers = asked and preflight.answers(host)
        why = f"no answer in {TIMEOUT:g} s" if asked else "not asked, as HF_HUB_OFFLINE is set"
        reason = f"{why}: {use} won't work unless it is cached"
        yield Finding(host.removeprefix("https://"), "answers" if answers else reason, "ok" if answers else "note")


def disk() -> Iterator[Finding]:
    """Yield the free room where runs, temporary files and shared memory lie."""
    for name, folder in (("runs (.)", Path()), ("temporary files", Path(tempfile.gettempdir()))):
        free, writable = shutil.disk_usage(folder).free, os.access(folder, os.W_OK)
        text = f"{_gigabytes(free)} free at {folder.resolve()}"
        advice = "" if writable else ", which can't be written to: output=FOLDER elsewhere"
        yield Finding(name, f"{text}{advice}", "ok" if free > 2e9 and writable else "note")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        few = "" if free > 1e9 else ": loader processes may need more (docker run --shm-size=2g), or data.workers=0"
        yield Finding("shared memory", f"{_gigabytes(free)} free{few}", "note" if few else "ok")


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
