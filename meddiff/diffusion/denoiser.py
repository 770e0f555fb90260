"""The one idea: a model is a denoiser, `D(x, sigma, cond) = E[x0 | x0 + sigma * eps = x, cond]`.

`Preconditioned` makes one of any network, whatever that network was trained to predict.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf, log
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from meddiff.diffusion.sigmas import Timesteps
from meddiff.errors import ConfigError


@dataclass(frozen=True)
class Condition:
    """What a sample is asked to agree with; every part is optional.

    image       (B, Ci, *spatial)  channels beside x: a degraded scan, a mask
    label       (B,) int64         class; -1 where unknown, or dropped for guidance
    covariates  (B, V) float       age, spacing, ...; NaN where unknown
    """

    image: Tensor | None = None
    label: Tensor | None = None
    covariates: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """The condition with `change` applied to every part that is there."""
        return Condition(*(None if v is None else change(v) for v in (getattr(self, f.name) for f in fields(self))))

    def map_image(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """The condition with `change` applied to its image channels only."""
        return self if self.image is None else Condition(change(self.image), self.label, self.covariates)


class Denoiser(Protocol):
    """Posterior mean of a signal under Gaussian noise, E[x0 | x, sigma, cond].

    x      (B, C, *spatial)   x0 + sigma * eps, model units
    sigma  () or (B,)         noise standard deviation, same units as x
    cond   None or Condition  image channels, class, covariates
    """

    def __call__(self, x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor: ...


class Network(Protocol):
    """What a denoiser wraps: `F(c_in * x, c_noise, cond)`, of the shape of x."""

    def __call__(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor: ...


def at_level(sigma: Tensor, x: Tensor) -> Tensor:
    """Noise levels, () or (B,), as x needs them. One for all stays where it is, best on the CPU: torch takes it for a number there,
    and a GPU neither waits for it nor is waited for."""
    return sigma.to(x) if sigma.ndim else sigma.to(x.dtype)


def wide_level(sigma: Tensor, x: Tensor) -> Tensor:
    """`at_level`, shaped to multiply x: () or (B, 1, ...)."""
    level = at_level(sigma, x)
    return level.view(-1, *[1] * (x.ndim - 1)) if level.ndim else level


L = TypeVar("L", Tensor, float)  # a noise level and what follows from it: one for all, or one for each case


class Row(NamedTuple, Generic[L]):
    """One row of the table: `D = c_skip * x + c_out * F(c_in * x, c_noise, cond)`."""

    c_skip: L
    c_out: L
    c_in: L
    c_noise: L


def _log(sigma: L) -> L:
    if isinstance(sigma, Tensor):
        return sigma.log()
    return log(sigma) if sigma > 0 else -inf


def _timestep(sigma: L, timesteps: Timesteps) -> L:
    if isinstance(sigma, Tensor):
        return timesteps.of_sigma(sigma)
    return float(timesteps.of_sigma(torch.tensor(sigma, dtype=torch.float64)))


def _edm(sigma: L, sigma_data: float, timesteps: Timesteps) -> Row[L]:
    norm = (sigma**2 + sigma_data**2) ** 0.5
    return Row(sigma_data**2 / norm**2, sigma * sigma_data / norm, 1 / norm, _log(sigma) / 4)


def _eps(sigma: L, sigma_data: float, timesteps: Timesteps) -> Row[L]:
    return Row(0 * sigma + 1, -sigma, (1 + sigma**2) ** -0.5, _timestep(sigma, timesteps))


def _v(sigma: L, sigma_data: float, timesteps: Timesteps) -> Row[L]:
    root_a = (1 + sigma**2) ** -0.5
    return Row(root_a**2, -sigma * root_a, root_a, _timestep(sigma, timesteps))


def _x0(sigma: L, sigma_data: float, timesteps: Timesteps) -> Row[L]:
    return Row(0 * sigma, 0 * sigma + 1, (1 + sigma**2) ** -0.5, _timestep(sigma, timesteps))


def _flow(sigma: L, sigma_data: float, timesteps: Timesteps) -> Row[L]:
    t = sigma / (1 + sigma)
    return Row(1 - t, -t, 1 - t, t)


def _monai_rflow(sigma: L, sigma_data: float, timesteps: Timesteps) -> Row[L]:
    t = sigma / (1 + sigma)
    return Row(1 - t, t, 1 - t, 1000 * t)


PARAMETERIZATIONS: dict[str, Callable[..., Row]] = {
    "edm": _edm,  # EDM residual, Karras et al. 2022, table 1
    "eps": _eps,  # noise of the variance-preserving process, Ho et al. 2020
    "v": _v,  # Salimans and Ho 2022, section 4
    "x0": _x0,  # the image itself
    "flow": _flow,  # eps - x0, rectified flow, Liu et al. 2023
    "monai_rflow": _monai_rflow,  # x0 - eps, the sign and time of MONAI's RFlowScheduler
}


class Preconditioned(nn.Module):
    """A denoiser from a network and the name of what that network predicts."""

    def __init__(
        self,
        network: nn.Module,  # a Network
        parameterization: str = "edm",  # a row of PARAMETERIZATIONS
        sigma_data: float = 0.5,  # standard deviation of x0; used by the "edm" row only
        timesteps: Timesteps
        | None = None,  # the table of a variance-preserving process; DDPM's linear one unless given
    ) -> None:
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ConfigError(
                f"diffusion.parameterization: {parameterization!r} is unknown; "
                f"choose one of {', '.join(PARAMETERIZATIONS)}."
            )
        self.network = network
        self.parameterization = parameterization
        self.sigma_data = sigma_data
        self.timesteps = timesteps if timesteps is not None else Timesteps.ddpm_linear()

    def row(self, sigma: Tensor, x: Tensor) -> Row[Tensor]:
        """The four coefficients at `sigma`, () or (B,), shaped to multiply `x`; c_noise keeps the shape of sigma."""
        row = PARAMETERIZATIONS[self.parameterization](at_level(sigma, x), self.sigma_data, self.timesteps)
        if sigma.ndim == 0:
            return row
        wide = (-1, *[1] * (x.ndim - 1))
        return Row(row.c_skip.view(wide), row.c_out.view(wide), row.c_in.view(wide), row.c_noise)

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """`E[x0 | x]`, of the shape and dtype of x; one sigma for all is fastest on the CPU, whatever the device of x."""
        if sigma.ndim:
            row = self.row(sigma, x)
            return torch.addcmul(row.c_skip * x, row.c_out, self.network(row.c_in * x, row.c_noise, cond).to(x.dtype))
        # plain numbers: a dozen operations on tensors of one element would cost more than those on the image
        here: Row[float] = PARAMETERIZATIONS[self.parameterization](float(sigma), self.sigma_data, self.timesteps)
        said = self.network(here.c_in * x, x.new_full((), here.c_noise), cond).to(x.dtype)
        return (here.c_skip * x).add_(said, alpha=here.c_out)

    def target(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """What the network should have said for `D(x, sigma) = x0`; the one training target of every row."""
        row = self.row(sigma, x)
        return (x0 - row.c_skip * x) / row.c_out
