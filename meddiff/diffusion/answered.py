"""Conditional denoisers in two parts: an answer from the condition alone, given once, and what samples add to it.

At sigma = inf a sample knows nothing but its condition, and E[x0 | cond] is what an ordinary network of the condition learns:
a direct segmentation, a one-shot restoration. The first network is that one, trained as ever. The second sees a noisy x and
the first answer, and learns what is left; however many samples are drawn, the first is evaluated once. For images this is
CorrDiff (Mardani et al. 2023, section 3); for labels the same, in logits.
"""

import torch
from torch import Tensor, nn

from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.posterior import C_NOISE
from meddiff.errors import ConfigError

LEFT = (
    0.4  # standard deviation of what a trained first answer leaves of an image, in units of its c_out: see `Restored`
)


class AnsweredLabels(nn.Module):
    """The network of a `Posterior` or `LabelPosterior`: log p(label | image), plus what x adds to it.

    first   (image (B, I, *spatial), c_noise) -> (B, K, *spatial)
    second  (x (B, K, *spatial), c_noise, cond), cond.image being image and first answer (B, I + K, *spatial); None: the
            answer is all there is
    """

    def __init__(self, first: nn.Module, second: nn.Module | None, channels: int) -> None:  # channels: I
        super().__init__()
        self.first, self.second, self.channels = first, second, channels

    def answered(self, cond: Condition | None) -> Condition:
        """The condition with log p(label | image), (B, K, *spatial), beside its image; as it is if it has that already.

        Raises ConfigError without an image.
        """
        image = None if cond is None else cond.image
        if cond is None or image is None:
            raise ConfigError("A segmentation needs cond.image, (B, channels, *spatial); found none.")
        if image.shape[1] > self.channels:
            return cond
        logits = self.first(image, image.new_zeros(()), Condition(label=cond.label, covariates=cond.covariates))
        log_p = logits.float().log_softmax(1)
        return Condition(torch.cat([image, log_p.to(image)], dim=1), cond.label, cond.covariates)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        """Logits (B, K, *spatial)."""
        cond = self.answered(cond)
        assert cond.image is not None
        log_p = cond.image[:, self.channels :]
        blind = c_noise >= C_NOISE  # nothing is known of x: the answer stands
        if self.second is None or bool(blind.all()):
            return log_p
        image = torch.cat([cond.image[:, : self.channels], log_p.exp() - 1 / log_p.shape[1]], dim=1)
        given = Condition(image, cond.label, cond.covariates)
        if c_noise.ndim == 0:
            return log_p + self.second(x, x.new_full((), c_noise.item()), given)
        return log_p + torch.where(blind.view(-1, *[1] * (x.ndim - 1)), 0.0, self.second(x, c_noise, given))


class Restored(nn.Module):
    """Denoiser of z = (x0 - m) / s for a degraded image y: m is the first answer E[x0 | y], s its scale.

    first   Preconditioned: D(y, level), the one-shot restoration; cond.image holds what else is known, such as a mask
    second  Preconditioned: D(z, sigma, cond), cond.image being y, m and the rest; None: there is no more than m

    `level` is how far y is from x0, as a standard deviation in model units. s is the first's c_out there, so that z is the
    error that its network makes, in units of what it learns: about `LEFT` at any level.
    """

    def __init__(self, first: Preconditioned, second: Preconditioned | None, channels: int) -> None:
        super().__init__()
        self.first, self.second, self.channels = first, second, channels

    def answer(self, y: Tensor, level: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, Condition]:
        """m (B, C, *spatial), s (B, 1, ...) and the condition of `forward`; y (B, C, *spatial), level (B,)."""
        m = self.first(y, level, Condition(known))
        s = self.first.row(level, y).c_out.abs()
        parts = [y, m.detach(), *([] if known is None else [known])]
        return m, s, Condition(torch.cat(parts, dim=1), covariates=level.log().unsqueeze(1))

    def forward(self, z: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """E[z0 | z, cond], of the shape of z; 0 where there is no second network."""
        if self.second is None:
            return torch.zeros_like(z)
        return self.second(z, sigma, cond)
