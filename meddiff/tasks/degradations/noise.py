"""White and Rician noise."""

import torch
from torch import Generator, Tensor

from meddiff.degradation_config import Gaussian, Rician
from meddiff.tasks.degradations.measured import Measured, Parameters, Units, everywhere, log_uniform, noise, seed


def draw(settings: Gaussian | Rician, dims: int, units: Units | None, generator: Generator) -> Parameters:
    """`sigma`, a share of the intensity range, and `seed`."""
    return {"sigma": log_uniform(*settings.sigma, generator), "seed": seed(generator)}


def gaussian(x: Tensor, parameters: Parameters) -> Measured:
    """x + sigma * eps."""
    sigma = 2 * parameters["sigma"]
    return everywhere(x + sigma * noise(x, parameters["seed"]), sigma)


def rician(x: Tensor, parameters: Parameters) -> Measured:
    """The magnitude of a complex signal with equal noise in both parts (Gudbjartsson and Patz 1995).

    The signal is x + 1, so that -1 is 0. The mean square of the magnitude is that of the signal plus 2 sigma^2.
    """
    sigma = 2 * parameters["sigma"]
    real, imaginary = sigma * noise(torch.stack([x, x]), parameters["seed"])
    return everywhere(torch.hypot((x + 1) + real, imaginary) - 1, sigma)
