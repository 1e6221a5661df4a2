"""Which process of a run this is, what its processes agree on before Lightning connects them, and how they end.

Three launchers: Lightning itself starts a machine's further processes (LOCAL_RANK; NODE_RANK where there are several
machines), torchrun (RANK) and SLURM's srun (SLURM_PROCID) start all of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from unetseg.errors import UserError

PATIENCE = timedelta(hours=1)
"""How long the other processes wait for the first one, which may have to download the data, and checks them."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Requests to stop: Ctrl-C, a scheduler's two, and a terminal or ssh that went away. Whole process groups get them."""

CELL = "UNETSEG_CELL"
"""The environment variable that says to a process that it trains one run of a sweep."""

_recorded: list[Sequence[str]] = []
"""The command that is recorded in place of this process's own; see `recorded_as`."""
_kept: list[Any] = []
"""The first process's end of the store; without it the others could not read."""


def is_first() -> bool:
    """Return whether this is the process that writes files and speaks to the user."""
    number = _number_and_count(1)[0]
    return number == 0 and ("RANK" in os.environ or int(os.environ.get("LOCAL_RANK", 0)) == 0)


def has_peers() -> bool:
    """Return whether torchrun or srun has started further processes of this run."""
    return _number_and_count(1)[1] > 1


def is_cell() -> bool:
    """Return whether this process trains one run of a sweep, whose options the sweep has checked together."""
    return CELL in os.environ


def command_line() -> str:
    """Return the command that repeats what this process does, for a shell."""
    return shlex.join(_recorded[-1] if _recorded else ["python", *sys.orig_argv[1:]])


@contextmanager
def recorded_as(words: Sequence[str]) -> Iterator[None]:
    """Let `command_line` be these words during the block: a notebook's own command repeats nothing."""
    _recorded.append(words)
    try:
        yield
    finally:
        _recorded.pop()


def decide_on_first(decide: Callable[[], str], machines: int) -> str:
    """Return on every process what `decide` returns on the first one.

    Args:
        decide: called on the first process only; where it raises a UserError, the others end quietly with status 2.
        machines: their number; each has one process that Lightning did not start itself.
    """
    number, count = _number_and_count(machines)
    if count == 1:
        return decide()
    store = _store(number, count)
    if number > 0:
        store.wait(["unetseg"], PATIENCE)
        answer = json.loads(store.get("unetseg"))
        if answer is None:
            sys.exit(2)
        return str(answer)
    _kept.append(store)
    try:
        decided = decide()
    except UserError:
        store.set("unetseg", json.dumps(None))
        raise
    store.set("unetseg", json.dumps(decided))
    return decided


def loader_init_fn() -> Callable[[int], None]:
    """Return the worker_init_fn of a DataLoader whose processes ignore requests to stop, and end with this one."""
    from multiprocessing.util import Finalize

    Finalize(None, _kill_loaders, exitpriority=0)  # before multiprocessing sends them SIGTERM, and waits
    return _outlive_stops


def _outlive_stops(worker: int) -> None:
    """Leave the requests to stop to the process that trains, and end with it, also by kill -9."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    die_with_the_parent()


def _kill_loaders() -> None:
    import multiprocessing

    for child in multiprocessing.active_children():
        if child.daemon:  # as all loader processes are, and as multiprocessing ends them itself
            child.kill()


def is_ignored(number: signal.Signals) -> bool:
    """Return whether this process was started to live on when its terminal goes away, as nohup does."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def die_with_the_parent() -> None:
    """Ask Linux to kill this process when its parent ends, also by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def die_of_ctrl_c() -> None:
    """End this process by SIGINT itself, so that a shell ends its loop, too."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _number_and_count(machines: int) -> tuple[int, int]:
    """Return this process's number and the number of processes, without those that Lightning starts itself."""
    here = os.environ
    if "RANK" in here and "WORLD_SIZE" in here:
        return int(here["RANK"]), int(here["WORLD_SIZE"])
    if "SLURM_PROCID" in here and int(here.get("SLURM_NTASKS", 1)) > 1:
        return int(here["SLURM_PROCID"]), int(here["SLURM_NTASKS"])
    missing = {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} - here.keys()
    if machines > 1 and missing:
        raise UserError(
            f"trainer.num_nodes={machines} without {', '.join(sorted(missing))} in the environment",
            accepted="these on each machine, or torchrun, or srun",
            advice="docs/guides/devices.md",
        )
    return int(here.get("NODE_RANK", 0)), machines


def _store(number: int, count: int) -> Any:
    """Return the key-value store at the address where Lightning will connect the processes later."""
    from torch.distributed import rendezvous

    if "RANK" in os.environ:  # torchrun has a store of its own
        return next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
    if "SLURM_PROCID" in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        address, port = slurm.main_address, slurm.main_port
    else:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return next(iter(rendezvous(f"tcp://{address}:{port}", number, count, timeout=PATIENCE)))[0]
