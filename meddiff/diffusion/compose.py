"""Denoisers from denoisers: guidance, windows over large volumes, 2D models over 3D volumes, ensembles, latents."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from operator import itemgetter
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.errors import ConfigError

T = TypeVar("T")


def guided(
    denoise: Denoiser,
    weight: float,  # 1 leaves the condition as it is, 0 drops it, above 1 exaggerates it
    without: Condition | None = None,  # the condition to move away from; none at all unless given
) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, in D): two evaluations for one."""

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        if cond is None or weight == 1:
            return denoise(x, sigma, cond)
        base = denoise(x, sigma, without)
        return torch.lerp(base, denoise(x, sigma, cond), weight)

    return denoiser


def averaged(denoisers: Sequence[Denoiser]) -> Denoiser:
    """The mean of several denoisers: of an ensemble, or of one denoiser seen from several orientations."""
    if not denoisers:
        raise ConfigError("averaged() needs at least one denoiser; found none.")

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        return torch.stack([d(x, sigma, cond) for d in denoisers]).mean(0)

    return denoiser


def slicewise(denoise: Denoiser, axis: int) -> Denoiser:
    """A 3D denoiser from a 2D one, over the slices along spatial axis 0, 1 or 2 of x (B, C, I, J, K)."""

    def fold(v: Tensor) -> Tensor:
        return v.movedim(2 + axis, 1).flatten(0, 1)  # (B * slices, C, *in_plane)

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        slices = x.shape[2 + axis]
        if cond is not None:
            image = None if cond.image is None else fold(cond.image)
            rest = cond.map(lambda v: v.repeat_interleave(slices, 0))
            cond = Condition(image, rest.label, rest.covariates)
        level = sigma if sigma.ndim == 0 else sigma.repeat_interleave(slices)
        return denoise(fold(x), level, cond).unflatten(0, (len(x), slices)).movedim(1, 2 + axis)

    return denoiser


@dataclass(frozen=True)
class Empty:
    """Windows that nobody has to look at, because what is there follows from what is given."""

    holds: Callable[[Condition], Tensor]  # which of n windows are empty, (n,) bool
    answer: Tensor  # (C,): D of every voxel in them


def windowed(
    denoise: Denoiser,  # local: what is a quarter of `overlap` away must not matter to it, for the result to be exact
    patch: Sequence[int],  # voxels per axis
    overlap: Sequence[int],  # voxels shared by neighbours, per axis
    batch: int = 1,  # windows that go through `denoise` together, those of all cases counted
    empty: Empty | None = None,  # what is left out; its `answer` stands there as if `denoise` had said so
) -> Denoiser:
    """A denoiser of any size from one that sees `patch` voxels, blended inside every step, so that no seam is left.

    The outer quarter of each overlap is left to the neighbour and the middle half is blended linearly. An axis that is
    not larger than the patch is taken whole.
    """
    patch, overlap = tuple(patch), tuple(overlap)
    if len(patch) != len(overlap) or any(not 0 <= o < p for p, o in zip(patch, overlap, strict=True)):
        raise ConfigError(
            f"windowed() needs 0 <= overlap < patch on every axis; found overlap {overlap}, patch {patch}."
        )

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        spatial = x.shape[2:]
        if len(spatial) != len(patch):
            raise ConfigError(f"windowed() has a patch of {len(patch)} axes, the image has {len(spatial)}.")
        axes = [_windows(n, p, o, x) for n, p, o in zip(spatial, patch, overlap, strict=True)]
        total, weights = torch.zeros_like(x), x.new_zeros(spatial)
        for windows in _batched(product(*axes), max(1, batch // len(x))):
            places = [(slice(None), slice(None), *(where for where, _ in window)) for window in windows]
            shown = torch.cat([x[place] for place in places])
            level = sigma if sigma.ndim == 0 else sigma.repeat(len(places))
            parts = _looked_at(denoise, shown, level, _at(places, cond), empty).split(len(x))
            for window, place, part in zip(windows, places, parts, strict=True):
                weight = window[0][1]
                for _, along in window[1:]:
                    weight = weight[..., None] * along
                total[place] += weight * part
                weights[place[2:]] += weight
        return total / weights

    return denoiser


def _at(places: Sequence[tuple[slice, ...]], cond: Condition | None) -> Condition | None:
    """The condition of windows one after another, each of all cases."""
    if cond is None:
        return None
    image = None if cond.image is None else torch.cat([cond.image[place] for place in places])
    rest = cond.map(lambda v: v.repeat(len(places), *[1] * (v.ndim - 1)))
    return Condition(image, rest.label, rest.covariates)


def _looked_at(denoise: Denoiser, x: Tensor, sigma: Tensor, cond: Condition | None, empty: Empty | None) -> Tensor:
    """D of windows (n, C, *patch), those that are empty being answered without `denoise`."""
    if empty is None or cond is None:
        return denoise(x, sigma, cond)
    skipped = empty.holds(cond)
    if not skipped.any():
        return denoise(x, sigma, cond)
    d = empty.answer.to(x).view(-1, *[1] * (x.ndim - 2)).expand_as(x).clone()
    if not skipped.all():
        kept = ~skipped
        d[kept] = denoise(x[kept], sigma if sigma.ndim == 0 else sigma[kept], cond.map(itemgetter(kept)))
    return d


class Autoencoder(Protocol):
    """Images <-> latents, `factor` times smaller along each axis."""

    factor: int

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents of images, each (B, C, *latents)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents."""
        ...


class Latent(nn.Module):
    """A denoiser of latents that knows the images they stand for; see `latent`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, denoise: Denoiser, autoencoder: Autoencoder, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.denoise, self.autoencoder = denoise, autoencoder
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    @property
    def channels(self) -> int:
        """Of the latents."""
        return len(self.mean)

    @property
    def factor(self) -> int:
        """Voxels along each axis that a latent stands for."""
        return self.autoencoder.factor

    def forward(self, z: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """`E[z0 | z]`, of the shape of z."""
        return self.denoise(z, sigma, cond)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents of images (B, 1, *spatial), in the units of the denoiser."""
        mean, deviation = self.autoencoder.encode(x)
        return (mean - self._wide(self.mean, mean)) / self._wide(self.std, mean), deviation / self._wide(self.std, mean)

    def decode(self, z: Tensor) -> Tensor:
        """The images (B, 1, *spatial) of latents (B, C, *latents)."""
        return self.autoencoder.decode(z * self._wide(self.std, z) + self._wide(self.mean, z))

    def _wide(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).view(-1, *[1] * (like.ndim - 2))


def latent(
    denoise: Denoiser,  # of latents in units of `std` around `mean`
    autoencoder: Autoencoder,
    mean: Sequence[float],  # per latent channel
    std: Sequence[float],  # per latent channel, above 0
) -> Latent:
    """A denoiser whose state is the latent of an image (Rombach et al. 2022): samplers walk over latents, `decode` shows them.

    `decode(D(z, sigma))` is what the denoiser takes the image to be, on the way as at the end.
    """
    if not mean or len(mean) != len(std) or min(std) <= 0:
        raise ConfigError(f"latent() needs a mean and a deviation above 0 per channel; found {mean} and {std}.")
    return Latent(denoise, autoencoder, mean, std)


def _windows(size: int, patch: int, overlap: int, like: Tensor) -> list[tuple[slice, Tensor]]:
    """The windows along one axis, each with its weights (patch,): 1 inside, a ramp to 0 where a neighbour takes over."""
    if size <= patch:
        return [(slice(0, size), like.new_ones(size))]
    count = -(-(size - overlap) // (patch - overlap))
    starts = [round(i * (size - patch) / (count - 1)) for i in range(count)]
    position = torch.arange(patch, device=like.device, dtype=like.dtype) + 0.5
    windows = []
    for i, start in enumerate(starts):
        weight = like.new_ones(patch)
        if i > 0:
            weight = torch.minimum(weight, _ramp(position, starts[i - 1] + patch - start))
        if i < count - 1:
            weight = torch.minimum(weight, _ramp(patch - position, start + patch - starts[i + 1]))
        windows.append((slice(start, start + patch), weight))
    return windows


def _ramp(depth: Tensor, overlap: int) -> Tensor:
    """0 in the outer quarter of the overlap, 1 beyond three quarters, linear between; 1 where nothing is shared."""
    return ((depth - overlap / 4) / (overlap / 2)).clamp(0, 1) if overlap > 0 else torch.ones_like(depth)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; itertools has it from Python 3.12 on."""
    items = iter(items)
    while part := list(islice(items, size)):
        yield part
