"""The features of a data set's own: a small encoder, trained on the training images alone, that sees what a copyist blurs.

Two questions train it. Of all images in a batch, which one is this a shifted view of (instance discrimination, Chen et al.
2020)? And was it blurred, made noisy, changed in contrast, or left as it was? Copies of an image that were changed are wrong
answers to the first, so that the features keep what an encoder trained to ignore such changes would lose. No network is
downloaded.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Generator, Tensor

from meddiff.engines.checkpoint import write_atomic
from meddiff.networks.encoder import Encoder
from meddiff.seeds import generator

BATCH = 64
LEARNING_RATE = 5e-3
TEMPERATURE = 0.2
SHIFT = 0.08  # of the size, either way, along each axis
NOISE = (0.02, 0.3)  # standard deviation, model units
CONTRAST = (0.7, 0.9)  # of what is left of it
KINDS = 4  # of views: as it was, blurred, noisy, of less contrast
FORMAT = 1  # raise it when the training changes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """An encoder, and the SHA-256 of its weights: features of two encoders do not compare."""

    network: Encoder
    sha256: str

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The features of images (n, 1, *size), (n, 64) float64."""
        device = next(self.network.parameters()).device
        return torch.cat([self.network(part.float().to(device)).double().cpu() for part in images.split(256)])


def trained_encoder(images: Tensor, cache: Path, device: torch.device, steps: int) -> Trained:
    """The encoder of training images (N, 1, *size) in model units: from `cache`, or trained now and kept there.

    The cache's key is the images themselves and how the encoder is trained, so that it cannot be of other images. The weights
    learned from patients' images: they lie where the preprocessed images do, and belong nowhere else.
    """
    path = cache / f"encoder_{_key(images, steps)}.safetensors"
    network = Encoder(images.ndim - 2, KINDS)
    content = _read(path, network)
    if content is None:
        network = train_encoder(images, device, steps)
        content = save({name: value.cpu().contiguous() for name, value in network.state_dict().items()})
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, content)
    return Trained(network.to(device).eval().requires_grad_(False), hashlib.sha256(content).hexdigest())


def train_encoder(images: Tensor, device: torch.device, steps: int) -> Encoder:
    """An encoder of images (N, 1, *size), trained on nothing else; the same one each time on the same machine."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Encoder(images.ndim - 2, KINDS).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    batch = min(BATCH, len(images))
    for step in range(steps):
        rng = generator(0, "encoder", step)
        chosen = images[torch.randperm(len(images), generator=rng)[:batch]].float()
        views = [shifted(chosen, rng), shifted(chosen, rng), damaged(shifted(chosen, rng), rng)]
        features = network(torch.cat(views).to(device))
        z = F.normalize(network.project(features), dim=1)
        kinds = torch.cat([torch.zeros(2 * batch, dtype=torch.long), 1 + torch.arange(batch) % (KINDS - 1)]).to(device)
        loss = contrastive_loss(z[: 2 * batch], z[2 * batch :])
        loss = loss + F.cross_entropy(network.recognise(features), kinds)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.step()
    return network


def contrastive_loss(views: Tensor, wrong: Tensor) -> Tensor:
    """Cross-entropy of finding an image's other view among all views and the wrong ones; unit vectors (2n, d) and (m, d).

    NT-Xent of Chen et al. 2020, eq. 1, with `wrong` as further negatives; views i and i + n are of one image.
    """
    count = len(views)
    similar = views @ torch.cat([views, wrong]).T / TEMPERATURE  # (2n, 2n + m)
    similar = similar.masked_fill(torch.eye(count, similar.shape[1], dtype=torch.bool, device=views.device), -torch.inf)
    partner = (torch.arange(count, device=views.device) + count // 2) % count
    return F.cross_entropy(similar, partner)


def shifted(images: Tensor, rng: Generator) -> Tensor:
    """Each image moved by whole voxels along every axis, what comes in being background: no interpolation, no blur."""
    most = [max(1, round(SHIFT * n)) for n in images.shape[2:]]
    padded = F.pad(images, [m for m in reversed(most) for _ in range(2)], value=-1.0)
    moved = []
    for image in padded:
        start = [int(torch.randint(0, 2 * m + 1, (), generator=rng)) for m in most]
        moved.append(image[(slice(None), *(slice(s, s + n) for s, n in zip(start, images.shape[2:], strict=True)))])
    return torch.stack(moved)


def damaged(images: Tensor, rng: Generator) -> Tensor:
    """A third of the images blurred, a third with noise, a third with less contrast."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    draws = torch.rand(len(images), 2, generator=rng)
    low, high = NOISE
    changed = []
    for i, (image, (amount, part)) in enumerate(zip(images, draws.tolist(), strict=True)):
        if i % 3 == 0:
            blurred = pool(image[None], 3, 1, 1, count_include_pad=False)[0]
            changed.append(torch.lerp(image, blurred, 0.3 + 0.7 * amount))
        elif i % 3 == 1:
            sigma = low * (high / low) ** amount
            changed.append((image + sigma * torch.randn(image.shape, generator=rng)).clamp(-1, 1))
        else:
            centre = image.mean() if part < 0.5 else image.amax()
            changed.append(centre + (image - centre) * (CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * amount))
    return torch.stack(changed)


def _key(images: Tensor, steps: int) -> str:
    training = [steps, BATCH, LEARNING_RATE, TEMPERATURE, SHIFT, *NOISE, *CONTRAST]
    how = [FORMAT, training, torch.__version__, list(images.shape)]
    content = images.contiguous().cpu().numpy().tobytes()
    return hashlib.sha256(json.dumps(how).encode() + content).hexdigest()[:32]


def _read(path: Path, network: Encoder) -> bytes | None:
    """The content of a file of weights, which are then in the network; None where there is no whole one."""
    try:
        network.load_state_dict(load_file(path))
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, RuntimeError) as e:
        log.warning("%s is damaged (%s); the encoder is trained again.", path, e)
        return None
