"""Do samples differ from one another as much as real images do?"""

import torch
from monai.metrics.regression import compute_ms_ssim
from torch import Tensor

from meddiff.errors import MetricError
from meddiff.seeds import generator

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
WINDOW = 11  # voxels


def ms_ssim_pairs(images: Tensor, seed: int = 0) -> Tensor:  # (n, 1, *spatial), -1 to 1
    """Multi-scale structural similarity (Wang et al. 2003) of n // 2 random pairs of images, no image in two; (n // 2,).

    1 is the same image; a set that repeats itself has a higher mean than a real one (Odena et al. 2017, section 4.2).
    As many of the five scales as images of this size have room for, their weights made to sum to 1, and a window of 11 voxels
    or the largest odd number that fits; compare equal sizes only.
    """
    if len(images) < 2 or images.shape[1] != 1 or min(images.shape[2:]) < 2:
        raise MetricError(
            f"Pairs are drawn of at least 2 images of one channel and 2 voxels an axis; found {tuple(images.shape)}."
        )
    smallest = min(images.shape[2:])
    window = min(WINDOW, (smallest - 1) // 2 * 2 + 1)
    room = [
        smallest // max(2 ** (s - 1), (s - 1) ** 2) for s in range(1, len(WEIGHTS) + 1)
    ]  # MONAI asks for the second
    scales = sum(r >= window for r in room)
    weights = torch.tensor(WEIGHTS[:scales])
    order = torch.randperm(len(images), generator=generator(seed, "pairs"))
    bright = (images[order].float().cpu() + 1) / 2  # the luminance term is meant for values from 0 up
    pairs = len(images) // 2
    similar = compute_ms_ssim(
        bright[:pairs],
        bright[pairs : 2 * pairs],
        spatial_dims=images.ndim - 2,
        kernel_size=window,
        weights=(weights / weights.sum()).tolist(),
    )
    return similar[:, 0].double()
