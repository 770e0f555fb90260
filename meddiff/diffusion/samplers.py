"""Samplers: from noise to a sample, along a decreasing tensor of sigmas, with any denoiser.

Each walks `zip(sigmas[:-1], sigmas[1:])`, so the grid and the steps cannot disagree. `x` starts as
`x0 + sigmas[0] * eps`, or as `sigmas[0] * eps` to sample from nothing. Every argument but the first three is optional.

    generators  one torch.Generator per case, for the sampler that draws noise on its way
    on_step     called after each step as on_step(i, x, d): the state, and the denoised image the step used
"""

import itertools
from collections.abc import Callable, Sequence
from math import log

import torch
from torch import Generator, Tensor

from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.diffusion.noise import draw
from meddiff.errors import ConfigError

OnStep = Callable[[int, Tensor, Tensor], None]


def _steps(sigmas: Tensor, x: Tensor) -> list[tuple[int, Tensor, float, float]]:
    """Each step as (i, sigma for the denoiser, sigma, next sigma); on the CPU: reading it there never waits for a device."""
    levels = sigmas.tolist()
    if any(b >= a for a, b in itertools.pairwise(levels)) or levels[-1] < 0:
        raise ConfigError(f"A sampler needs strictly decreasing sigmas that end at 0 or above; found {levels}.")
    return [(i, sigma, levels[i], levels[i + 1]) for i, sigma in enumerate(sigmas[:-1].to("cpu", x.dtype).unbind())]


@torch.no_grad()
def euler(
    denoise: Denoiser,
    x: Tensor,  # (B, C, *spatial)
    sigmas: Tensor,  # (n + 1,)
    cond: Condition | None = None,
    generators: Sequence[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, n evaluations: EDM's Euler step, which is DDIM with eta = 0 (Song et al. 2021) and rectified flow's."""
    for i, sigma, s, s_next in _steps(sigmas, x):
        d = denoise(x, sigma, cond)
        x = torch.lerp(d, x, s_next / s)
        if on_step:
            on_step(i, x, d)
    return x


@torch.no_grad()
def heun(
    denoise: Denoiser,
    x: Tensor,  # (B, C, *spatial)
    sigmas: Tensor,  # (n + 1,)
    cond: Condition | None = None,
    generators: Sequence[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order, two evaluations a step but one for a step to 0 (Karras et al. 2022, algorithm 1)."""
    after = sigmas[1:].to("cpu", x.dtype).unbind()
    for i, sigma, s, s_next in _steps(sigmas, x):
        d = denoise(x, sigma, cond)
        x_next = torch.lerp(d, x, s_next / s)
        if s_next > 0:
            slope = (x - d) / s + (x_next - denoise(x_next, after[i], cond)) / s_next
            x_next = x + (s_next - s) / 2 * slope
        x = x_next
        if on_step:
            on_step(i, x, d)
    return x


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser,
    x: Tensor,  # (B, C, *spatial)
    sigmas: Tensor,  # (n + 1,)
    cond: Condition | None = None,
    generators: Sequence[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order, n evaluations: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in sigma rather than in half log-SNR."""
    d_old, h_old = None, 0.0
    for i, sigma, s, s_next in _steps(sigmas, x):
        d = denoise(x, sigma, cond)
        if s_next == 0:
            x = d
        else:
            h = log(s / s_next)
            rest = s_next / s  # of x
            x = torch.lerp(d, x, rest) if d_old is None else torch.lerp(d_old, d, 1 + h / (2 * h_old)).lerp_(x, rest)
            d_old, h_old = d, h
        if on_step:
            on_step(i, x, d)
    return x


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    x: Tensor,  # (B, C, *spatial)
    sigmas: Tensor,  # (n + 1,)
    cond: Condition | None = None,
    generators: Sequence[Generator] | None = None,
    on_step: OnStep | None = None,
    noise: str = "gaussian",  # the kind the model was trained with
) -> Tensor:
    """DDPM's posterior q(x_next | x, x0 = D) for steps of any length, n evaluations (Ho et al. 2020, eq. 7, in sigma)."""
    if generators is None or len(generators) != len(x):
        raise ConfigError(
            f"The ancestral sampler needs one generator per case; found {len(generators or ())} for {len(x)}."
        )
    for i, sigma, s, s_next in _steps(sigmas, x):
        d = denoise(x, sigma, cond)
        x = torch.lerp(d, x, (s_next / s) ** 2)
        if s_next > 0:
            x = x + s_next * (1 - (s_next / s) ** 2) ** 0.5 * draw(noise, x.shape[1:], generators, like=x)
        if on_step:
            on_step(i, x, d)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ancestral": ancestral,
}


def grid_steps(sampler: str, evaluations: int) -> int:
    """Levels above 0 that a grid may have for `sampler` to make at most that many network evaluations.

    >>> grid_steps("dpmpp_2m", 16), grid_steps("heun", 16)
    (16, 8)
    """
    return max(1, (evaluations + 1) // 2) if sampler == "heun" else evaluations
