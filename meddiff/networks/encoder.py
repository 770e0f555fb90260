"""A small network from an image to a vector of features, in 2D and 3D."""

import torch
from torch import Tensor, nn

from meddiff.errors import NetworkError
from meddiff.networks.blocks import EPS, convolution, detail

CHANNELS = (16, 32, 64, 64)  # each level halves the size
GROUPS = 8
DETAIL = 4.0  # what detail is multiplied by


class Encoder(nn.Module):
    """Strided convolutions, then the mean over what is left of space: (B, 1, *spatial) -> (B, 64).

    `project`, (B, 64) -> (B, 32), and `recognise`, (B, 64) -> (B, kinds), are for training only: contrastive losses throw away
    in their last layer what their task does not need (Chen et al. 2020, section 4.2).
    """

    def __init__(self, spatial_dims: int, kinds: int) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise NetworkError(f"An encoder is for 2 or 3 dimensions, found {spatial_dims}.")
        layers: list[nn.Module] = []
        for inputs, outputs in zip((2, *CHANNELS[:-1]), CHANNELS, strict=True):
            # no norm next to the image: how bright it is and how much contrast it has are features
            norm = nn.GroupNorm(GROUPS, outputs, eps=EPS) if inputs > 2 else nn.Identity()
            layers += [convolution(spatial_dims, inputs, outputs, stride=2), norm, nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(CHANNELS[-1], CHANNELS[-1]), nn.SiLU(), nn.Linear(CHANNELS[-1], 32))
        self.recognise = nn.Linear(CHANNELS[-1], kinds)

    def forward(self, x: Tensor) -> Tensor:
        """The features, (B, 64)."""
        # fine detail is a small part of an image's variance: beside it, it is seen from the first step on
        return self.layers(torch.cat([x, DETAIL * detail(x, 3)], dim=1)).flatten(2).mean(2)
