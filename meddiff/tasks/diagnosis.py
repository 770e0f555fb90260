"""Diagnosis: a class-conditional model of images as a classifier, by how well each class explains the noise.

The evidence for a class is an integral of its denoising error (the pointwise I-MMSE relation, Kong et al. 2023, eq. 9)
  log p(x0 | c) = const - int sigma^-2 E |x0 - D(x0 + sigma * eps, sigma, c)|^2 d ln(sigma)
in which all classes share noise and levels, so that what they do not disagree on cancels (Li et al. 2023), and neighbouring
levels share noise of opposite sign, so that what is linear in it cancels too.
"""

from collections.abc import Callable
from dataclasses import replace
from math import log

import torch
from torch import Tensor

from meddiff.diffusion.denoiser import Condition, Denoiser


def levels(draws: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The middles of `draws` equal parts of ln(sigma), decreasing, (draws,)."""
    middle = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    return (log(sigma_max) + middle * (log(sigma_min) - log(sigma_max))).exp().float()


@torch.no_grad()
def evidence(
    denoise: Denoiser,
    x0: Tensor,  # (B, C, *spatial), model units
    classes: int,
    sigmas: Tensor,  # (draws,), of `levels` between the limits of the integral
    noise: Callable[[int], Tensor],  # unit noise by number, of the shape of x0; one for two levels
    cond: Condition | None = None,  # whatever else is given
) -> Tensor:
    """log p(x0 | c) up to a constant of x0, (B, classes) float64; what lies beyond the limits of sigma is left out."""
    given = cond or Condition()
    total = torch.zeros(len(x0), classes, dtype=torch.float64)
    step = log(float(sigmas[0] / sigmas[1])) if len(sigmas) > 1 else 1.0
    for k, sigma in enumerate(sigmas.to(x0)):
        x = x0 + (-1) ** k * sigma * noise(k // 2).to(x0)
        for c in range(classes):
            label = torch.full((len(x0),), c, device=x0.device)
            error = x0 - denoise(x, sigma, replace(given, label=label)).to(x0)
            total[:, c] -= step * (error.double().flatten(1).square().sum(1) / sigma.double() ** 2).cpu()
    return total
