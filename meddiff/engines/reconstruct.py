"""How much of held-out scans an autoencoder keeps: whole volumes encoded, decoded and compared."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from meddiff.data.latents import TOGETHER
from meddiff.data.loader import Images
from meddiff.data.manifest import Case
from meddiff.data.store import BACKGROUND
from meddiff.data.transforms import AXES
from meddiff.metrics.fidelity import mae, psnr, ssim
from meddiff.networks.autoencoder import Autoencoder

RANGE = (-1.0, 1.0)  # of images in model units


@torch.no_grad()
def reconstructed(
    model: Autoencoder,
    images: Images,
    scale: float,  # model = scale * value + offset: MAE is told in the scan's unit
    limit: int | None = None,  # cases
    keep: Callable[[Case, Tensor, Tensor], None] | None = None,  # told each case's images and reconstructions
) -> Iterator[dict[str, Any]]:
    """A row for every case: PSNR, SSIM and MAE of decoded means on the whole preprocessed grid, in windows where it is larger.

    Of slices, those that are trained on, as one stack.
    """
    device = next(model.parameters()).device
    for index, items in groupby(images.items, key=lambda item: item.case):
        if limit is not None and index >= limit:
            break
        case, volume = images.cases[index], torch.from_numpy(images.store.array(images.cases[index]).copy()).float()
        if images.dims == 2:
            volume = volume.movedim(AXES[images.data.axis], 0)[[item.slice for item in items]]
        parts = volume[:, None] if images.dims == 2 else volume[None, None]
        decoded = torch.cat([_decoded(model, some.to(device)) for some in parts.split(TOGETHER)])
        truth, found = parts[:, 0].squeeze(0).numpy(), decoded[:, 0].squeeze(0).clamp(*RANGE).numpy()
        if keep:
            keep(case, parts, decoded)
        yield {
            "case": case.case,
            "patient": case.patient,
            "psnr": psnr(found, truth, RANGE),
            "ssim": ssim(found, truth, RANGE),
            "mae": mae(found / scale, truth / scale, truth > BACKGROUND),
        }


def _decoded(model: Autoencoder, image: Tensor) -> Tensor:
    return model.decode(model.encode(image)[0], image.shape[2:]).cpu()
