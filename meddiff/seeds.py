"""Counter-based randomness: every draw is a function of a seed and of what it is for, never of what was drawn before.

A case therefore gets the same noise whatever its batch, and a resumed run draws what the uninterrupted one would have:
there is no generator state to save. The one exception is `secret`.
"""

import hashlib
import secrets

import torch

WORDS, FIRST = 624, 24  # of the state of torch's CPU generator, a Mersenne Twister; the byte that they begin at


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


def secret(device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that the operating system seeds, for what nobody may ever repeat: the seed is kept nowhere.

    torch's CPU generator takes 32 bits of a seed, which can be tried out one by one; here all of its state is drawn.
    """
    generator = torch.Generator(device)
    generator.manual_seed(secrets.randbits(63))
    if generator.device.type == "cpu":
        state = generator.get_state()
        assert len(state) >= FIRST + 8 * WORDS, "torch keeps the state of its CPU generator in another way"
        words = torch.frombuffer(bytearray(secrets.token_bytes(4 * WORDS)), dtype=torch.int32).long() & 0xFFFFFFFF
        state[FIRST : FIRST + 8 * WORDS].view(torch.int64).copy_(words)
        generator.set_state(state)
    return generator
