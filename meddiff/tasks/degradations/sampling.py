"""What was not measured finely enough, or not at all."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, interpolate, pad

from meddiff.degradation_config import Downsample, Mask
from meddiff.errors import ConfigError
from meddiff.tasks.degradations.measured import Measured, Parameters, Units, everywhere, uniform


def draw_downsample(settings: Downsample, dims: int, units: Units | None, generator: Generator) -> Parameters:
    """`factor` per spatial axis; nothing is random."""
    if len(settings.factor) != dims:
        raise ConfigError(f"downsample: images of {dims} axes need {dims} factors; found {list(settings.factor)}.")
    return {"factor": list(settings.factor)}


def downsample(x: Tensor, parameters: Parameters) -> Measured:
    """Block means, back on the fine grid by linear interpolation between the blocks' centres; edges are continued."""
    factor, spatial = parameters["factor"], x.shape[1:]
    short = [-n % f for n, f in zip(spatial, factor, strict=True)]
    whole = pad(x[None], [w for s in reversed(short) for w in (0, s)], mode="replicate")
    coarse = (avg_pool2d if x.ndim == 3 else avg_pool3d)(whole, factor)
    fine = interpolate(coarse, whole.shape[2:], mode="bilinear" if x.ndim == 3 else "trilinear", align_corners=False)
    return everywhere(fine[0][(slice(None), *(slice(n) for n in spatial))])


def draw_mask(settings: Mask, dims: int, units: Units | None, generator: Generator) -> Parameters:
    """`shape`, `fill`, and per axis `size` and `centre` as shares of the axis; the region lies inside the image."""
    size = [uniform(*settings.size, generator) for _ in range(dims)]
    centre = [uniform(s / 2, 1 - s / 2, generator) for s in size]
    return {"shape": settings.shape, "fill": settings.fill, "size": size, "centre": centre}


def mask(x: Tensor, parameters: Parameters) -> Measured:
    """Voxels whose centre lies in the region hold `fill`, and are 0 in the mask."""
    offsets = []
    for axis, (size, centre) in enumerate(zip(parameters["size"], parameters["centre"], strict=True)):
        n = x.shape[1 + axis]
        place = (torch.arange(n, dtype=torch.float64) + 0.5) / n - centre
        reach = 2 * place.abs() / size if size > 0 else torch.full_like(place, torch.inf)
        offsets.append(reach.view(-1, *[1] * (x.ndim - 2 - axis)))
    together = torch.stack(torch.broadcast_tensors(*offsets))
    distance = together.amax(0) if parameters["shape"] == "box" else together.square().sum(0).sqrt()
    known = (distance > 1).to(x)[None]
    return Measured(torch.where(known > 0, x, parameters["fill"]), float("nan"), known)
