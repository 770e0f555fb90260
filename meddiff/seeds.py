"""Counter-based randomness: every draw is a function of a seed and of what it is for, never of what was drawn before.

A case therefore gets the same noise whatever its batch, and a resumed run draws what the uninterrupted one would have:
there is no generator state to save.
"""

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, for instance `derive(seed, "noise", step, slot)`; stable across machines.

    >>> derive(0, "noise", 1) == derive(0, "noise", 1), derive(0, "noise", 1) == derive(0, "noise", 2)
    (True, False)
    """
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive`; drawing on the CPU gives the same numbers on every device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
