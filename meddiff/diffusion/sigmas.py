"""Noise levels: grids of sigma to sample on, and distributions of sigma to train on.

Every grid is evenly spaced in a time of its own, between the times of `sigma_max` and `sigma_min`, and ends with 0.
A training distribution is its quantile function, from u in (0, 1) to sigma, so that a batch can be stratified.
"""

from collections.abc import Callable
from math import atan

import torch
from torch import Tensor, nn

from meddiff.errors import ConfigError


class Timesteps(nn.Module):
    """The timestep table of a variance-preserving process: sigma(t)^2 = (1 - alphas_cumprod[t]) / alphas_cumprod[t].

    The table is a buffer, so a checkpoint carries the schedule its network was trained on.
    """

    log_sigmas: Tensor

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        a = alphas_cumprod.double()
        self.register_buffer("log_sigmas", (((1 - a) / a).log() / 2).float())  # (T,), increasing

    @classmethod
    def ddpm_linear(cls, n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "Timesteps":
        """The linear schedule of Ho et al. 2020, section 4."""
        return cls((1 - torch.linspace(beta_start, beta_end, n, dtype=torch.float64)).cumprod(0))

    def of_sigma(self, sigma: Tensor) -> Tensor:
        """The (fractional) timestep of each sigma, linear between table entries in ln(sigma), clamped to the table."""
        table = self.log_sigmas
        level = sigma.to(table).log()
        above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        t = above - 1 + ((level - low) / (high - low)).clamp(0, 1)
        whole = t.round()  # float32 tells timesteps apart to 1e-4: a sigma of the table gets its own, exactly
        return torch.where((t - whole).abs() < 1e-3, whole, t).to(sigma.dtype)

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """The inverse of `of_sigma`, in the dtype of `timestep`."""
        table = self.log_sigmas.to(timestep.dtype)
        t = timestep.clamp(0, len(table) - 1)
        below = t.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[below], table[below + 1], t - below).exp()

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest sigma of the table."""
        return float(self.log_sigmas[0].exp()), float(self.log_sigmas[-1].exp())


def _check(n: int, sigma_min: float, sigma_max: float) -> None:
    if n < 1 or not 0 < sigma_min < sigma_max:
        raise ConfigError(
            f"A sampling grid needs at least 1 step and 0 < sigma_min < sigma_max; found {n} steps, "
            f"sigma_min {sigma_min:g}, sigma_max {sigma_max:g}. Correct sample.steps, sample.sigma_min or sample.sigma_max."
        )


def _grid(n: int, start: float, end: float, sigma_of: Callable[[Tensor], Tensor]) -> Tensor:
    sigmas = sigma_of(torch.linspace(start, end, n, dtype=torch.float64))
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Sigma grid of Karras et al. 2022, eq. 5: `n` decreasing levels, then 0; shape (n + 1,).

    >>> karras(3, 0.1, 10.0)
    tensor([10.0000,  1.4507,  0.1000,  0.0000])
    """
    _check(n, sigma_min, sigma_max)
    return _grid(n, sigma_max ** (1 / rho), sigma_min ** (1 / rho), lambda t: t**rho)


def cosine(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even steps of the angle of the cosine schedule (Nichol and Dhariwal 2021), sigma = tan(angle); shape (n + 1,)."""
    _check(n, sigma_min, sigma_max)
    return _grid(n, atan(sigma_max), atan(sigma_min), torch.tan)


def flow(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even steps of the time of a rectified flow (Liu et al. 2023), sigma = t / (1 - t); shape (n + 1,)."""
    _check(n, sigma_min, sigma_max)
    return _grid(n, sigma_max / (1 + sigma_max), sigma_min / (1 + sigma_min), lambda t: t / (1 - t))


def ddpm_linear(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even steps of the timestep of DDPM's linear table, within its range of 0.01 to 157; shape (n + 1,)."""
    _check(n, sigma_min, sigma_max)
    table = Timesteps.ddpm_linear()
    low, high = table.range
    if sigma_min < low or sigma_max > high:
        raise ConfigError(
            f"The ddpm_linear grid covers sigmas from {low:.4g} to {high:.4g}; found sigma_min {sigma_min:g} and "
            f"sigma_max {sigma_max:g}. Narrow them, or choose the karras grid."
        )
    start, end = (float(table.of_sigma(torch.tensor(s, dtype=torch.float64))) for s in (sigma_max, sigma_min))
    return _grid(n, start, end, table.sigma_of)


GRIDS: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "ddpm_linear": ddpm_linear,
    "cosine": cosine,
    "flow": flow,
}


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """`n` uniform draws, one in each n-th of (0, 1), in random order; shape (n,), float64.

    One stratum a case lowers the variance of the loss over a batch (Kingma et al. 2021, appendix I.1).
    """
    draws = torch.rand(n, generator=generator, dtype=torch.float64)
    return ((torch.randperm(n, generator=generator) + draws) / n).clamp(1e-7, 1 - 1e-7)


def lognormal(u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """ln(sigma) normal; the defaults are those of Karras et al. 2022, table 1."""
    return (mean + std * torch.special.ndtri(u)).exp()


def uniform_t(u: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """The time of the cosine schedule uniform between the times of sigma_min and sigma_max."""
    return torch.tan(torch.lerp(u.new_tensor(atan(sigma_min)), u.new_tensor(atan(sigma_max)), u))


def logit_normal(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) normal, t the time of a rectified flow (Esser et al. 2024, section 3.1).

    As sigma = t / (1 - t), logit(t) is ln(sigma): this is `lognormal` with the usual defaults of flow models.
    """
    return lognormal(u, mean, std)


TRAINING: dict[str, Callable[..., Tensor]] = {
    "lognormal": lognormal,
    "uniform_t": uniform_t,
    "logit_normal": logit_normal,
}
