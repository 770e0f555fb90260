"""The processes of one `torchrun`: which of them this is, what all of them agree on, and how they share work.

Without `torchrun` there is one process, and nothing here costs anything. `join` is called once, by the command line.
"""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from meddiff.errors import RunError

PATIENCE = timedelta(hours=2)  # that a process waits for another: the first one may be preprocessing
T = TypeVar("T")


def launched() -> bool:
    """Whether `torchrun` started this process beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str = "cpu") -> None:
    """Join the other processes, over NCCL where `device` may be a CUDA device and there is one, else over Gloo."""
    if not launched():
        return
    import ignite.distributed as idist
    import torch

    if torch.distributed.is_initialized():
        return
    cuda = device.startswith(("auto", "cuda")) and torch.cuda.is_available()
    # under SLURM, Ignite would take the ranks of SLURM's tasks; those are the launchers, not the processes they started
    slurm = os.environ.pop("SLURM_JOB_ID", None)
    try:
        idist.initialize("nccl" if cuda else "gloo", timeout=PATIENCE)
    finally:
        if slurm is not None:
            os.environ["SLURM_JOB_ID"] = slurm
    atexit.register(idist.finalize)


def rank() -> int:
    """Which of the processes this is; 0 writes what there is one of."""
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def first() -> bool:
    """Whether this process writes what there is one of."""
    return rank() == 0


def mine(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item, from this process's own on: its share of work whose parts do not depend on each other."""
    return items[rank() :: world()]


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of their ranks; any object."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def total(value: float) -> float:
    """The sum over all processes."""
    if world() == 1:
        return value
    import ignite.distributed as idist
    import torch

    return float(idist.all_reduce(torch.tensor(value, dtype=torch.float64)))


def raised(*flags: bool) -> list[bool]:
    """For each flag whether any process raises it."""
    if world() == 1:
        return list(flags)
    import ignite.distributed as idist
    import torch

    own = torch.tensor(flags, dtype=torch.int32)
    return [bool(flag) for flag in torch.as_tensor(idist.all_reduce(own, op="MAX"))]


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others: what it leaves on the disk they find there."""
    if not first():
        barrier()
    yield
    if first():
        barrier()


def barrier() -> None:
    """Wait until every process is here; RunError where one of them is gone."""
    if world() == 1:
        return
    import ignite.distributed as idist

    try:
        idist.barrier()
    except RuntimeError as e:
        raise RunError("Another process of this command ended; its own message says why.") from e
