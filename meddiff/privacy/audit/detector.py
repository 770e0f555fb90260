"""A copy detector, trained on the fly: an embedding in which an image and its changed copy are near, other patients far."""

from collections.abc import Callable, Sequence
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn import functional

from meddiff.audit_config import AuditConfig
from meddiff.privacy.audit.changes import combined
from meddiff.privacy.audit.statistics import owners
from meddiff.seeds import derive, generator

Embed = Callable[[Tensor], Tensor]  # (n, 1, *size) -> (n, K), rows of length 1

WIDTHS = (16, 32, 64, 64)  # channels; each level halves the image until GRID voxels are left
GRID = 4
FEATURES = 128
TEMPERATURE = 0.05  # of the contrast
RATE = 2e-3
STRENGTH = 1.25  # of the training changes, beyond those that are planted


class Embedding(nn.Module):
    """A small convolutional network; what an image and its mirror image say is averaged."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        dims = len(size)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.pool = nn.AdaptiveAvgPool2d(GRID) if dims == 2 else nn.AdaptiveAvgPool3d(GRID)
        layers: list[nn.Module] = []
        before, left = 1, min(size)
        for width in WIDTHS:
            stride = 2 if left > GRID else 1
            layers += [conv(before, width, 3, stride, 1), nn.GroupNorm(4, width), nn.SiLU()]
            before, left = width, -(-left // stride)
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(before * GRID**dims, FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, *size) -> (n, FEATURES), of length 1."""
        features = self.out(self.pool(self.layers(images)).flatten(1))
        return functional.normalize(features, dim=1)


def train_detector(
    images: Tensor,  # (n, 1, *size), of patients that no threshold or test is taken from
    patients: Sequence[str],  # whose each image is
    settings: AuditConfig,
    on_step: Callable[[], None] | None = None,
) -> Embed:
    """Train by contrast (Chen et al. 2020, NT-Xent): two changed views of an image belong together, other patients apart.

    Images of one patient are neither. The same settings and images give the same detector.
    """
    owner = owners(patients)
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.seed, "detector"))
        network = Embedding(images.shape[2:])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    batch = min(settings.detector_batch, len(images))
    for step in range(settings.detector_steps):
        g = generator(settings.seed, "contrast", step)
        chosen = torch.randperm(len(images), generator=g)[:batch]
        views = torch.cat([_view(images[chosen], g) for _ in range(2)])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + cos(pi * step / settings.detector_steps))
        loss = contrast(network(views), owner[chosen].repeat(2))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if on_step:
            on_step()
    network.eval().requires_grad_(False)

    def embed(images: Tensor) -> Tensor:
        parts = images.split(256)
        return torch.cat([functional.normalize(network(p) + network(p.flip(2)), dim=1) for p in parts])

    return embed


def contrast(features: Tensor, owner: Tensor) -> Tensor:
    """NT-Xent over views (2 n, K), where i and i + n are of one image; pairs of one owner (2 n,) else count for nothing."""
    n = len(features) // 2
    partner = torch.arange(2 * n).roll(n)
    logits = features @ features.T / TEMPERATURE
    same = owner[:, None] == owner[None]
    same[torch.arange(2 * n), partner] = False
    return functional.cross_entropy(logits.masked_fill(same, float("-inf")), partner)


def _view(images: Tensor, g: torch.Generator) -> Tensor:
    return combined(images, STRENGTH * torch.rand(len(images), generator=g), g)
