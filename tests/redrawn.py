"""Networks whose every parameter matters: as built, their zero convolutions hide everything before them."""

import torch
from torch import nn


def redrawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode with random parameters, in place; the scale of a signal about survives each layer."""
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        for name, p in module.named_parameters(recurse=False):
            spread = 0.1 if p.ndim == 1 else p[0].numel() ** -0.5
            p.data = torch.randn(p.shape, generator=rng) * spread
            if isinstance(module, nn.GroupNorm) and name == "weight":
                p.data += 1.0
    return network.eval()
