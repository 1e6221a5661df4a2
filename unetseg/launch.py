"""Which process of a run this is, and what the processes agree on before Lightning connects them.

Three launchers: Lightning itself starts a machine's further processes (LOCAL_RANK; NODE_RANK where there are several
machines), torchrun (RANK) and SLURM's srun (SLURM_PROCID) start all of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from unetseg.errors import UserError

PATIENCE = timedelta(hours=1)
"""How long the first process is waited for: it may have to download the data, and checks them."""

_kept: list[Any] = []
"""The first process's end of the store; without it the others could not read."""


def is_first() -> bool:
    """Return whether this is the process that writes files and speaks to the user."""
    number = _number_and_count(1)[0]
    return number == 0 and ("RANK" in os.environ or int(os.environ.get("LOCAL_RANK", 0)) == 0)


def agreed(decide: Callable[[], str], machines: int) -> str:
    """Return on every process what `decide` returns on the first one.

    Args:
        decide: called on the first process only; where it raises a UserError, the others end quietly with status 2.
        machines: on how many the run is; each has one process that Lightning did not start itself.
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


def _number_and_count(machines: int) -> tuple[int, int]:
    """Return this process's number and how many there are, but for those that Lightning starts itself."""
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
            advice="the README's section on several devices",
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
