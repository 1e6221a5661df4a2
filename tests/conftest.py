"""What the tests share: no network, a small data set, and the real pictures where they are."""

import ctypes
import fcntl
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

os.environ |= {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_SILENT": "true"}
for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
    os.environ.pop(name, None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode each process compiles for half a minute
sys.dont_write_bytecode = False

pytest_plugins = ["tiers"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

TINY = (
    "data=synthetic",
    "data.size=64",
    "data.train_images=20",
    "data.test_images=7",
    "data.batch_size=4",
    "data.workers=0",
    "model.encoder=tu-test_resnet",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.enable_progress_bar=false",
    "logger=csv",
)
"""Overrides of a run of a second or two, with timm's ResNet for tests: random weights and all the levels."""


def draw_blank(patch: pytest.MonkeyPatch) -> None:
    """Write a picture of one pixel in place of each figure, which costs as much as all the rest of a tiny run."""
    from unetseg.evaluation import gradient_plots, mechanism_plots, score_plots

    def blank(figure):
        def write(*arguments, **options):
            Image.new("RGB", (1, 1)).save(signature(figure).bind(*arguments, **options).arguments["path"], "PNG")

        return write

    for module in (gradient_plots, mechanism_plots, score_plots):
        for name, made in [*vars(module).items()]:
            if hasattr(made, "__wrapped__") and "path" in signature(made).parameters:
                patch.setattr(module, name, blank(made))


WIDTHS = [32, 32, 16, 16, 16]
"""Of the decoder of such a run, coarsest first: the default's checkpoints and steps would be four times as large."""


def narrow_decoders(patch: pytest.MonkeyPatch) -> None:
    """Give the runs with one of timm's encoders for tests a decoder that is as small as their encoder."""
    from unetseg.training import build

    arguments_of = build.segmenter_arguments

    def narrow(options):
        widths = {"decoder_channels": WIDTHS} if options.model.encoder.startswith("tu-test_") else {}
        return {**arguments_of(options), **widths}

    patch.setattr(build, "segmenter_arguments", narrow)


@pytest.fixture(scope="session", autouse=True)
def small_networks():
    """Train small networks, in this process and in those of `Forked`."""
    with pytest.MonkeyPatch.context() as patch:
        narrow_decoders(patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def blank_figures(request: pytest.FixtureRequest):
    """Leave figures blank, except in a module with DRAWS = True and in tests that ask for `figures`."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "DRAWS", False):
            draw_blank(patch)
        yield patch


@pytest.fixture
def figures(blank_figures):
    """Draw the figures of this test."""
    blank_figures.undo()
    yield
    draw_blank(blank_figures)


@pytest.fixture(scope="session", autouse=True)
def small_remains(tmp_path_factory: pytest.TempPathFactory):
    """Remove checkpoints and exported models at the end: under pytest-xdist pytest keeps what the fixtures wrote."""
    yield
    for path in tmp_path_factory.getbasetemp().rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 2**20:
            path.unlink()


@pytest.fixture(scope="module", autouse=True)
def small_memory():
    """Give back what a module's networks took: a worker's heap would otherwise grow by gigabytes."""
    yield
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of generated sets that the tests share."""
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="session")
def drawn_set(drawn: Path) -> Path:
    """The root of the set that the runs of TINY use."""
    from unetseg.data.sources import generate
    from unetseg.options.compose import compose
    from unetseg.options.data_schema import Synthetic
    from unetseg.options.schema import Train

    options = compose("train", Train, [*TINY, f"data.root={drawn}"]).data
    assert isinstance(options, Synthetic)
    return generate(options.model_dump())


@pytest.fixture(scope="session")
def pets() -> Path:
    """The real pictures."""
    if not (SHARED / "pets").is_dir():
        pytest.skip("the real pictures are not here")
    return SHARED / "pets"


def prepared(options: dict, seed: int = 0, **arguments):
    """Return the DataModule of a run's data options, ready to give its loaders."""
    from unetseg.data.sources import make_data

    data = make_data(options, seed, **arguments)
    data.prepare_data()
    data.setup()
    return data


def write_pairs(root: Path, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Path:
    """Write pictures, HxWx3 or CxHxW, with their masks, as images/0.tif, masks/0.png, ..., and return the folder."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number, (image, mask) in enumerate(pairs):
        kind = "rgb" if image.shape[-1] == 3 else "minisblack"
        tifffile.imwrite(root / f"images/{number}.tif", image, photometric=kind)
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    return root


def square(rng: np.random.Generator, height: int, width: int, *sides: int) -> np.ndarray:
    """Return a mask, HxW uint8, with a rectangle of class 1 at a random place."""
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(0, (height - sides[0], width - sides[-1]))
    mask[top : top + sides[0], left : left + sides[-1]] = 1
    return mask


def timed(module: str, *arguments: str, folder: Path = ROOT) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a module; return what it did and its seconds on the processor, which other programs' load doesn't change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def quick() -> float:
    """Return the most seconds on the processor of a command that doesn't import torch, on this machine as it is now.

    It is four times as long as the libraries that it needs take, and two seconds where that is less.
    """
    command = [sys.executable, "-c", "import hydra, omegaconf, pydantic"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(2.0, 4 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


HANG = 3600
"""Seconds after which a process counts as stuck; load alone never makes one take as long."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["unetseg.training.build", "unetseg.runs.summary", "unetseg.train", "unetseg.evaluate", "albumentations.pytorch"]
)
"""Starts processes that have imported everything already: seconds faster than a fresh interpreter."""


class Forked:
    """`python -m MODULE ARGUMENTS` in a process of its own, with the interface of Popen, but forked from SERVER.

    Args:
        arguments: of the command.
        log: file that takes its two streams.
        folder: the one it works in.
        module: has the command's `main`.
        errors: file that takes the stream of errors; None: the log.
        environment: of the process; None: this one's.
    """

    def __init__(self, arguments, log=os.devnull, folder=".", module="unetseg.train", errors=None, environment=None):
        environment = dict(os.environ if environment is None else environment)
        for name in ("WANDB_SERVICE", "UNETSEG_RUN_FOLDER", "UNETSEG_PRECISION"):  # an earlier test's
            environment.pop(name, None)
        command = (module, *map(str, arguments))
        streams = (str(log), str(errors or log))
        self.process = SERVER.Process(target=_command, args=(command, streams, str(folder), environment))
        self.process.start()
        self.pid = self.process.pid
        with suppress(ProcessLookupError):  # it has ended already
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)  # until it leads a group, which may be killed

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode


def _command(command, streams, folder, environment):
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite that runs under nohup ignores it
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in a fresh interpreter
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        with open(path, "ab") as file:
            if number == 1 and file.isatty():
                fcntl.ioctl(file, termios.TIOCSCTTY, 0)  # the terminal that Ctrl-C is typed in
            os.dup2(file.fileno(), number)
    # The server's own streams know another kind of file, one that can be sought in where a terminal cannot.
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    draw_blank(pytest.MonkeyPatch())
    narrow_decoders(pytest.MonkeyPatch())
    sys.argv = [*command]
    sys.orig_argv = [sys.executable, "-m", *command]
    import_module(command[0]).main()


@contextmanager
def beside(function, *arguments):
    """Call a function in a second process, forked from SERVER, during the block."""
    process = SERVER.Process(target=_in_one_thread, args=(function, arguments))
    process.start()
    yield
    process.join()
    assert process.exitcode == 0


def _in_one_thread(function, arguments):
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def forked(module: str, *arguments: object, folder: Path = ROOT, environment: dict[str, str] | None = None):
    """Run a module's command to its end, forked from SERVER, and return what subprocess.run would."""
    with tempfile.TemporaryDirectory() as scratch:
        output, errors = Path(scratch, "output"), Path(scratch, "errors")
        status = Forked(arguments, output, folder, module, errors, environment).wait()
        return subprocess.CompletedProcess((module, *arguments), status, output.read_text(), errors.read_text())


@pytest.fixture
def tiny(drawn: Path, tmp_path: Path):
    """Return a function that trains for a few seconds and returns the run folder."""
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.runs.folder import RunFolder
    from unetseg.train import train

    def run(*overrides: str, callbacks=()) -> RunFolder:
        own = (f"data.root={drawn}", f"output={tmp_path}")
        return RunFolder(train(compose("train", Train, [*TINY, *own, *overrides]), callbacks)["folder"])

    return run


@pytest.fixture
def stopped(tiny, tmp_path: Path):
    """Return a function that trains until the n-th step and returns the run folder as a stop leaves it."""
    import lightning as L

    from unetseg.runs.folder import RunFolder

    class Stopped(Exception):
        pass

    def run(step: int, *overrides: str) -> RunFolder:
        class Stop(L.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                if trainer.global_step == step:
                    raise Stopped

        with pytest.raises(Stopped):
            tiny("name=stopped", *overrides, callbacks=[Stop()])
        return RunFolder(tmp_path / "stopped")

    return run
