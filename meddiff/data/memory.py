"""How much memory there is, and whether it was too little."""

import os
from pathlib import Path

FREE = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup/memory.max")  # a job of SLURM or a container has its own limit


def available() -> int:
    """Bytes of memory that this process may take: what is free, within the limit of its control group, else all there is."""
    most = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if FREE.exists():
        lines = FREE.read_text().splitlines()
        most += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if GROUP.exists() and (limit := GROUP.read_text().strip()).isdigit():
        most.append(int(limit))
    return min(most)


def exhausted(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that there was no memory left; torch and MONAI raise a RuntimeError."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            return True
        error = error.__cause__
    return False
