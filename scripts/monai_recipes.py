"""What users of MONAI do with its schedulers and networks, as its tutorials show: for benchmarks to compare with, no command."""

from collections.abc import Callable, Sequence
from math import gcd

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler, Scheduler
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.diffusion.denoiser import Denoiser
from meddiff.engines.card import Card
from meddiff.engines.trainer import autocast
from meddiff.engines.volumes import Seen, in_batches
from meddiff.imaging.volume import Volume
from meddiff.seeds import derive, generator

TIMESTEPS = 1000  # of DDPM, in training and in sampling


class InMonai(nn.Module):
    """A denoiser as a network of MONAI's schedulers: eps(x_t, t), x_t = (x0 + sigma * eps) / sqrt(1 + sigma^2)."""

    def __init__(self, denoise: Denoiser, scheduler: Scheduler) -> None:
        super().__init__()
        self.denoise, self.kept = denoise, scheduler.alphas_cumprod

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        a = self.kept[int(timesteps[0])]
        sigma, x = ((1 - a) / a).sqrt(), x / a.sqrt()
        return (x - self.denoise(x, sigma.to(x))) / sigma


def by_monai(denoise: Denoiser, scheduler: Scheduler, steps: int, size: Sequence[int]) -> Callable[[list[str]], Tensor]:
    """Samples (n, *size) of a denoiser by MONAI's inferer, one for each of n names, which seed them together."""
    network = InMonai(denoise, scheduler)
    scheduler.set_timesteps(steps)
    inferer = DiffusionInferer(scheduler)

    @torch.no_grad()
    def draw(names: list[str]) -> Tensor:
        torch.manual_seed(derive(0, names[0]))  # the inferer takes no generator
        return inferer.sample(torch.randn(len(names), *size), network, scheduler, verbose=False)

    return draw


class Tutorial:
    """MONAI's tutorial recipe for diffusion segmentation, for several labels: a mask of 0 and 1 for each."""

    def __init__(self, config: Config, labels: int, lr: float) -> None:
        torch.manual_seed(config.train.seed)
        network = config.network
        self.config, self.labels = config, labels
        self.net = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1 + labels,
            out_channels=labels,
            channels=network.channels,
            attention_levels=network.attention or (False,) * len(network.channels),
            num_res_blocks=network.blocks,
            num_head_channels=tuple(gcd(network.head_channels, n) for n in network.channels),  # in the middle, too
            norm_num_groups=network.norm_groups,
        )
        self.scheduler = DDPMScheduler(TIMESTEPS)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr)

    def step(self, batch: dict[str, Tensor], now: int) -> None:
        """One optimiser step on images (B, 1, I, J) and label maps (B, 1, I, J)."""
        self.net.train()
        draw = generator(self.config.train.seed, "tutorial", now)
        masks = F.one_hot(batch["label"][:, 0].long(), self.labels + 1).movedim(-1, 1)[:, 1:].float()
        t = torch.randint(0, TIMESTEPS, (len(masks),), generator=draw)
        noise = torch.randn(masks.shape, generator=draw)
        noisy = self.scheduler.add_noise(masks, noise, t)
        with autocast(torch.device("cpu"), self.config.train.precision):
            said = self.net(torch.cat([batch["image"], noisy], dim=1), t)
        F.mse_loss(said.float(), noise).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def segment(self, volume: Volume, card: Card) -> np.ndarray:
        """Channel of each voxel of a scan, 0 for background: the label of the greatest value above a half."""
        self.net.eval()
        seen, draw, found = Seen(volume, self.config, card), generator(0, "tutorial", "segment"), []
        size = seen.images.shape[2:]
        more = [-n % 2 ** (len(self.config.network.channels) - 1) for n in size]  # its levels do not halve an odd size
        images = F.pad(seen.images.float().clamp(-1, 1), (0, more[1], 0, more[0]), value=-1.0)
        for part in in_batches(len(images), self.config.sample.batch):
            image = images[part]
            x = torch.randn(len(image), self.labels, *image.shape[2:], generator=draw)
            for t in reversed(range(TIMESTEPS)):
                with autocast(torch.device("cpu"), self.config.sample.precision):
                    eps = self.net(torch.cat([image, x], dim=1), torch.full((1,), t).expand(len(image)))
                x, _ = self.scheduler.step(eps.float(), t, x, generator=draw)
            found.append(x[..., : size[0], : size[1]])
        masks = seen.back(seen.unbatch(torch.cat(found)))
        return np.where(masks.max(0) > 0.5, masks.argmax(0) + 1, 0)
