"""Functions in processes of their own, alone or as `torchrun` would start them.

They are forked from a server that has imported everything and computed nothing: a process costs no imports, and inherits no
threads.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "meddiff.cli",
        "meddiff.report.previews",
        "ignite.distributed",
        "torch.distributed.checkpoint.state_dict",
        "launched",
    ]
)
PATIENCE_S = 120


def start(function: Callable, *arguments: object, said: Path, environment: Mapping[str, str] | None = None):
    """A process that calls a function of a test module; what it writes to stderr goes to the file `said`."""
    process = CONTEXT.Process(target=_call, args=(function, arguments, said, dict(environment or {})))
    process.start()
    return process


def together(n: int, function: Callable, *arguments: object, said: Path, patience_s: float = PATIENCE_S) -> list[int]:
    """The exit codes of `n` processes that know of each other as those of `torchrun` do; rank r says in `said`.r"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        start(
            function,
            *arguments,
            said=said.with_name(f"{said.name}.{rank}"),
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(n)
    ]
    return [ended(process, patience_s) for process in processes]


def ended(process: multiprocessing.Process, patience_s: float = PATIENCE_S) -> int:
    """The exit code of a process, minus the signal where one killed it."""
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"A process went on for more than {patience_s} s.")
    assert process.exitcode is not None
    return process.exitcode


def _call(function: Callable, arguments: tuple, said: Path, environment: dict[str, str]) -> None:
    import torch

    multiprocessing.set_start_method("fork", force=True)  # of its loader processes, as in a process of its own
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    function(*arguments)


def command(*arguments: object) -> None:
    """The command line."""
    from meddiff.cli import main

    main([str(a) for a in arguments])
