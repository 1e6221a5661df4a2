"""Which tests `make test` leaves to `make test-all`: the slow ones, by measurement.

    make test-all ARGS=--measure        # writes tests/slow.txt anew

A test is slow where one of its cases took more than LIMIT, with the fixtures that it shares with others of its file:
whichever of them runs first has to make those. A slow test that stands for others which are left out is marked `quick`
and belongs to both.
"""

import os
import pkgutil
from collections import defaultdict
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
LIMIT = 1.0
"""Seconds on the processor, with the processes that a case has started: another program's load doesn't change them."""
TOOK = "seconds on the processor"


def name(nodeid: str) -> str:
    """Return a test without its case: `tests/test_train.py::test_x` of `tests/test_train.py::test_x[a-b]`."""
    return nodeid.partition("[")[0]


def slow_of(seconds: dict[str, list[float]], known: set[str]) -> list[str]:
    """Return the slow tests.

    Args:
        seconds: of each test's cases that were run.
        known: the slow ones so far; they stay where nothing of them was run.
    """
    return sorted({own for own, took in seconds.items() if max(took) > LIMIT} | (known - seconds.keys()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="write tests/slow.txt: the tests that take long")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: stands in tests/slow.txt, and not in `make test`")
    config.addinivalue_line("markers", "quick: in `make test` though it takes long, for others that are left out")
    if config.getoption("--measure") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Measured(), "measured")


def import_late() -> None:
    """Import what is imported where it is needed: otherwise the first test that needs it would seem to be slow."""
    import unetseg

    own = [module.name for module in pkgutil.walk_packages(unetseg.__path__, "unetseg.")]
    others = ("matplotlib.pyplot", "onnxruntime", "openvino", "optuna", "torch._dynamo", "torch.onnx", "wandb")
    for module in (*own, *others):
        if not module.endswith(("__main__", "exporting")):  # a command, and an old name that warns
            import_module(module)


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--measure"):
        import_late()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {*SLOW.read_text().splitlines()}
    for item in items:
        if name(item.nodeid) in slow and not item.get_closest_marker("quick"):
            item.add_marker("slow")


def clock() -> float:
    """Return the seconds on the processor of this process, of those that it has ended, and of those of `Forked`."""
    ticks: list[str] = []
    with suppress(OSError):  # no such server, or no Linux
        status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/stat")  # type: ignore[attr-defined]
        ticks = status.read_text().rpartition(")")[2].split()[11:15]
    return sum(os.times()[:4]) + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


BEGUN = pytest.StashKey[tuple[float, set[pytest.FixtureDef]]]()
"""The clock at a case's begin, and the fixtures that had been made by then."""
SHARED = pytest.StashKey[dict[pytest.FixtureDef, float]]()
"""What each fixture took that the tests of a file share."""


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest):
    begun = clock()
    value = yield
    if fixturedef.scope in ("class", "module"):
        request.config.stash.setdefault(SHARED, {})[fixturedef] = clock() - begun
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    item.stash[BEGUN] = clock(), {*item.config.stash.setdefault(SHARED, {})}
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "teardown":
        begun, made = item.stash[BEGUN]
        shared = item.config.stash[SHARED]
        own = clock() - begun - sum(took for fixture, took in shared.items() if fixture not in made)
        used = {fixture for fixtures in item._fixtureinfo.name2fixturedefs.values() for fixture in fixtures}
        report.user_properties = [(TOOK, own + sum(shared.get(fixture, 0.0) for fixture in used))]
    return report


class Measured:
    """Collects what the tests took, from all workers, and writes SLOW at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.seconds[name(report.nodeid)].append(dict(report.user_properties)[TOOK])

    def pytest_sessionfinish(self) -> None:
        slow = slow_of(self.seconds, {*SLOW.read_text().splitlines()})
        SLOW.write_text("".join(f"{own}\n" for own in slow))
