"""Low-dose CT: the noise of counted photons, through the reconstruction.

Noise is inserted in the projections, as in Yu et al. 2012 (J Comput Assist Tomogr 36, 477): the line integrals p of the image
give photon counts of mean photons * exp(-p), their noise -ln(counts / mean) is reconstructed and added to the image. It grows
with the attenuation along the rays, is streaky behind bone, and has the spectrum that the ramp filter gives it.
The scanner is one of parallel rays, an ideal detector and no beam hardening or electronic noise.
"""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from meddiff.degradation_config import LowDoseCT
from meddiff.errors import ConfigError
from meddiff.tasks.degradations.measured import Measured, Parameters, Units, everywhere, log_uniform, seed

WATER_PER_MM = 0.01928  # linear attenuation of water at 70 keV (NIST XCOM)
AIR_HU = -1000.0


def draw(settings: LowDoseCT, dims: int, units: Units | None, generator: Generator) -> Parameters:
    """`photons` and `seed`, with the scanner and the units as they are."""
    if units is None:
        raise ConfigError(
            "low_dose_ct needs to know the HU of -1 and 1 and the voxel size: use it with images in HU, under "
            "data.intensity of kind window."
        )
    if len(units.spacing_mm) != dims:
        raise ConfigError(f"low_dose_ct: images of {dims} axes need as many spacings; found {units.spacing_mm}.")
    return {
        "photons": log_uniform(*settings.photons, generator),
        "views": settings.views,
        "kernel": settings.kernel,
        "limits_hu": list(units.limits_hu),
        "spacing_mm": list(units.spacing_mm),
        "seed": seed(generator),
    }


def low_dose_ct(x: Tensor, parameters: Parameters) -> Measured:
    """x and the noise of a scan with this many photons, slice by slice of the first two spatial axes.

    Voxels at -1 are background and count as air, whatever the window; what the window clips from bone is missing from the
    attenuation. No single sigma describes the noise.
    """
    low, high = parameters["limits_hu"]
    hu = torch.where(x > -1, low + (x + 1) / 2 * (high - low), AIR_HU)
    flat = hu.flatten(3) if hu.ndim > 3 else hu[..., None]  # (C, I, J, slices)
    slices = flat.permute(0, 3, 1, 2).flatten(0, 1)  # (C * slices, I, J)
    attenuation = WATER_PER_MM * (1 + slices / 1000).clamp(min=0)
    added = 1000 / WATER_PER_MM * _noise(attenuation, parameters)
    image = added.unflatten(0, (x.shape[0], -1)).permute(0, 2, 3, 1).reshape(x.shape)
    return everywhere(x + image * 2 / (high - low))


def _noise(attenuation: Tensor, parameters: Parameters) -> Tensor:
    """Reconstructed noise (slices, I, J) per mm, of an attenuation (slices, I, J) per mm."""
    spacing = parameters["spacing_mm"][:2]
    pitch, views = min(spacing), parameters["views"]  # of the detector, mm
    bins = (
        2 * math.ceil(math.hypot(*(n * s for n, s in zip(attenuation.shape[1:], spacing, strict=True))) / pitch / 2) + 3
    )
    kernel = _kernel(bins, pitch, parameters["kernel"]).to(attenuation)
    random = Generator().manual_seed(parameters["seed"])
    area = spacing[0] * spacing[1]
    mass = attenuation.flatten(1) * area / pitch
    total = torch.zeros_like(mass)  # (slices, I * J)
    for left, part in _rays(attenuation, spacing, pitch, bins, views):
        lines = mass.new_zeros(len(mass), bins)
        lines.index_add_(1, left, mass * (1 - part)).index_add_(1, left + 1, mass * part)
        mean = (parameters["photons"] * torch.exp(-lines)).cpu().double()
        counts = torch.poisson(mean, generator=random).clamp(min=1)  # a starved element reports one photon
        error = -(counts / mean).log().to(lines)
        filtered = torch.fft.irfft(torch.fft.rfft(error, n=2 * bins) * kernel, n=2 * bins)[:, :bins]
        total += torch.lerp(filtered[:, left], filtered[:, left + 1], part)
    return (total * math.pi / views).view_as(attenuation)


def _rays(like: Tensor, spacing: list[float], pitch: float, bins: int, views: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each view, the detector element left of each voxel's ray and how far beyond it the ray passes; (I * J,) each."""
    rows, columns = (
        (torch.arange(n, device=like.device, dtype=torch.float64) - (n - 1) / 2) * s
        for n, s in zip(like.shape[1:], spacing, strict=True)
    )
    for view in range(views):
        angle = math.pi * (view + 0.5) / views
        place = (rows[:, None] * math.cos(angle) + columns * math.sin(angle)).flatten() / pitch + (bins - 1) / 2
        left = place.floor()
        yield left.long(), (place - left).to(like)


def _kernel(bins: int, pitch: float, kind: str) -> Tensor:
    """The ramp filter's response times the pitch, (bins + 1,) for a signal padded to 2 * bins (Kak and Slaney 1988, eq. 3.61)."""
    offset = torch.arange(2 * bins, dtype=torch.float64)
    offset = torch.minimum(offset, 2 * bins - offset)
    ramp = torch.where(offset % 2 == 1, -1 / (math.pi * offset.clamp(min=1) * pitch) ** 2, 0.0)
    ramp[0] = 1 / (4 * pitch**2)
    response = torch.fft.rfft(ramp * pitch).real
    if kind == "hann":
        response *= 0.5 + 0.5 * torch.cos(math.pi * torch.arange(bins + 1, dtype=torch.float64) / bins)
    return response
