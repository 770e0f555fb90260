"""The exponential moving average of weights, updated once per optimiser step."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """A copy of a model whose weights follow the model's, slower and with less noise.

    Early on the decay is (1 + n) / (10 + n), so that the average is not held back by the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of `model`, on whatever device it is; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own: list[Tensor] = list(self.model.parameters())
        others = [other.to(p.device) for p, other in zip(own, model.parameters(), strict=True)]
        torch._foreach_lerp_(own, others, 1 - decay)
        for buffer, other in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(other)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[nn.Module]:
        """The averaged model on a device to compute with; afterwards back where it was."""
        before = {p.device for p in self.model.parameters()}
        self.model.to(device)
        yield self.model
        for home in before - {device}:
            self.model.to(home)
