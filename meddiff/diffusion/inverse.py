"""Restoration with a model that was never trained for it: what was measured enters through the denoiser.

A measurement is `y = A x0 + sigma_n * eps` with a linear operator A. `denoise_at` and `sample_from` need white noise and
nothing else; `given_noisy` and `given` turn a denoiser into E[x0 | x, y], for any sampler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Generator, Tensor

from meddiff.diffusion.denoiser import Condition, Denoiser, at_level, wide_level
from meddiff.errors import ConfigError

_CONVERGED = 1e-12  # squared residual over squared right-hand side


class Operator(Protocol):
    """A linear measurement: <forward(x), y> = <x, adjoint(y)> for all x and y."""

    def forward(self, x: Tensor) -> Tensor: ...

    def adjoint(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """Every voxel, once: denoising."""

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """y itself."""
        return y


@dataclass(frozen=True, eq=False)
class Masked:
    """Some voxels: inpainting. What was not measured is 0 in y."""

    known: Tensor  # 1 where measured, 0 where not; broadcasts against (B, C, *spatial)

    def forward(self, x: Tensor) -> Tensor:
        """x where it is known, 0 elsewhere; the shape of x."""
        return x * self.known.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same: a projection is its own adjoint."""
        return y * self.known.to(y)


@dataclass(frozen=True)
class BlockAverage:
    """Means over blocks of voxels: super-resolution, thick slices."""

    factor: tuple[int, ...]  # voxels of a block, per spatial axis

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, C, *(n / factor)); ConfigError where a factor does not divide its axis."""
        spatial = x.shape[2:]
        if len(spatial) != len(self.factor) or any(n % f for n, f in zip(spatial, self.factor, strict=True)):
            raise ConfigError(
                f"Block averages by {self.factor} need an image whose {len(self.factor)} axes divide by them; "
                f"found {tuple(spatial)}. Crop or pad the image, or change the factor."
            )
        for axis, f in enumerate(self.factor, start=2):
            x = x.unflatten(axis, (-1, f)).mean(axis + 1)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """(B, C, *coarse) -> (B, C, *(coarse * factor)): each value shared out evenly over its block."""
        for axis, f in enumerate(self.factor, start=2):
            y = y.repeat_interleave(f, axis)
        return y / prod(self.factor)


def _check(sigma_n: float, least: str, fits: bool) -> None:
    if not fits:
        raise ConfigError(f"The noise level sigma_n of the measurement must be {least}; found {sigma_n:g}.")


@torch.no_grad()
def denoise_at(
    denoise: Denoiser,
    y: Tensor,  # (B, C, *spatial), x0 + sigma_n * eps
    sigma_n: float,  # model units
    cond: Condition | None = None,
) -> Tensor:
    """The posterior mean of a scan with white Gaussian noise of known level, in one evaluation: D(y, sigma_n)."""
    _check(sigma_n, "above 0", sigma_n > 0)
    return denoise(y, torch.tensor(sigma_n, dtype=y.dtype), cond)


def sample_from(
    denoise: Denoiser,
    sampler: Callable[..., Tensor],  # one of samplers.SAMPLERS; see below
    y: Tensor,  # (B, C, *spatial), x0 + sigma_n * eps
    sigma_n: float,  # model units
    sigmas: Tensor,  # (n + 1,), a grid; its levels from sigma_n up are replaced by sigma_n
    generators: Sequence[Generator] | None = None,
    cond: Condition | None = None,
) -> Tensor:
    """The reverse process started at the scan itself, where a state of level sigma_n is expected.

    With `ancestral` a draw from p(x0 | y). A deterministic sampler gives the one image that the probability flow takes y
    to: over many scans those are distributed as the data, but they do not vary for one scan. To draw from p(x0 | y) with
    such a sampler, start `given_noisy` from noise.
    """
    _check(sigma_n, "above 0", sigma_n > 0)
    below = sigmas[sigmas < sigma_n]
    if len(below) == 0:
        raise ConfigError(
            f"No level of the grid lies below the noise level {sigma_n:g} of the scan; the lowest is {sigmas[-1]:g}. "
            "Lower sample.sigma_min, or end the grid at 0."
        )
    return sampler(denoise, y, torch.cat([below.new_tensor([sigma_n]), below]), cond=cond, generators=generators)


def given_noisy(
    denoise: Denoiser,
    y: Tensor,  # (B or 1, C, *spatial), x0 + sigma_n * eps
    sigma_n: float,  # model units
) -> Denoiser:
    """E[x0 | x, y] where y is the image itself under white Gaussian noise; exact for any prior, one evaluation.

    x and y are independent measurements of x0, so their mean weighted by 1 / sigma^2 says all that both say, with a noise
    of 1 / sqrt(1 / sigma^2 + 1 / sigma_n^2).
    """
    _check(sigma_n, "above 0", sigma_n > 0)

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        level = at_level(sigma, x)
        share = sigma_n**2 / (sigma_n**2 + level**2)  # of x in the mean
        weight = wide_level(share, x) if share.ndim else share.item()
        return denoise(torch.lerp(y.to(x), x, weight), level * share.sqrt(), cond)

    return denoiser


def given(
    denoise: Denoiser,  # differentiable in x
    operator: Operator,
    y: Tensor,  # (B or 1, *measured), operator.forward(x0) + sigma_n * eps
    sigma_n: float,  # of y, in model units; 0 for a measurement without noise
    iterations: int = 8,  # of conjugate gradients at most, each one backward pass through the denoiser
) -> Denoiser:
    """E[x0 | x, y] for a linear measurement: moment matching posterior sampling (Rozet et al. 2024).

    p(x0 | x) is taken as the Gaussian of its true mean D and true covariance C = sigma^2 dD/dx (Tweedie), so that
    E[x0 | x, y] = D + C A' (A C A' + sigma_n^2)^-1 (y - A D); the inverse by conjugate gradients. Exact for Gaussian data
    once these have converged; for other data approximate at large sigma, and exact again as sigma falls to where p(x0 | x)
    is narrow. dD/dx is symmetric for a true denoiser, so that one vector-Jacobian product applies it; a network is not
    quite one, and a case stops at the first direction in which its covariance is not positive. Clamp the result, not
    `denoise`: a clamped voxel has no derivative, so that it would count as certain and the measurement of it as nothing.
    """
    _check(sigma_n, "0 or above", sigma_n >= 0)
    if iterations < 1:
        raise ConfigError(f"given() needs at least 1 iteration of conjugate gradients; found {iterations}.")

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        variance = wide_level(sigma, x) ** 2
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            mean = denoise(at, sigma, cond)

        def covariance(v: Tensor) -> Tensor:
            return variance * torch.autograd.grad(mean, at, v, retain_graph=True)[0]

        def spread(v: Tensor) -> Tensor:
            return operator.forward(covariance(operator.adjoint(v))) + sigma_n**2 * v

        d = mean.detach()
        missing = y.to(x) - operator.forward(d)
        return d + covariance(operator.adjoint(conjugate_gradients(spread, missing, iterations)))

    return denoiser


def conjugate_gradients(act: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """The solution v of act(v) = b for a symmetric positive act (Hestenes and Stiefel 1952), each case (B, ...) by itself.

    A case stops where it has converged, and where it meets a direction in which act is not positive.
    """
    v, r, p = torch.zeros_like(b), b, b
    rest = _dot(b, b)
    going, least = rest > 0, _CONVERGED * rest
    for _ in range(iterations):
        if not going.any():
            break
        q = act(p)
        curvature = _dot(p, q)
        going = going & (curvature > 0)
        step = torch.where(going, rest / curvature, 0.0)
        v, r = v + step * p, r - step * q
        rest, before = _dot(r, r), rest
        going = going & (rest > least)
        p = torch.where(going, r + rest / before * p, 0.0)
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each case, shaped to multiply it."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)
