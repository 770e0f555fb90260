"""Denoisers of label maps: `E[x0 | x]` of a one-hot map is the posterior of every label, `D = softmax(logits)`.

`Posterior` serves the Gaussian process on one-hot maps, `LabelPosterior` the discrete one of `categorical.py`. Both show
the network what it would see at any noise level; where x carries no information (sigma = inf, survival = 0) x is replaced
by zeros, so that `D(., inf, cond)` is a deterministic function of the condition: a direct segmentation.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Generator, Tensor, nn

from meddiff.diffusion.denoiser import Condition, at_level, wide_level
from meddiff.diffusion.noise import sent
from meddiff.errors import ConfigError, ImageError

UNKNOWN = -1  # the number of a voxel whose label nobody knows
C_NOISE = 2.5  # c_noise stays within this, sigma = exp(10) or no information at all; larger sigmas look alike anyway


def one_hot(
    labels: Tensor,  # (B, *spatial), integers
    classes: int,
    unknown: int = UNKNOWN,  # becomes the even 1 / classes
) -> Tensor:
    """The map x0 of labels 0..classes-1; (B, classes, *spatial) float32.

    Raises ImageError if a label is neither a class nor `unknown`.
    """
    labels = labels.long()
    known = labels != unknown
    inside = torch.where(known, labels, 0)
    if labels.numel() and (int(inside.min()) < 0 or int(inside.max()) >= classes):
        raise ImageError(
            f"A label map needs labels 0 to {classes - 1}, or {unknown} where unknown; found {int(inside.min())} to "
            f"{int(inside.max())}. Map the labels to consecutive numbers first."
        )
    return torch.where(known.unsqueeze(1), one_hot_of_classes(inside, classes), 1 / classes)


def one_hot_of_classes(labels: Tensor, classes: int) -> Tensor:
    """`one_hot` of (B, *spatial) int64 that are all within 0..classes-1: nothing is looked at, so no device is waited for."""
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def drawn(probabilities: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Labels drawn voxel by voxel from (B, K, *spatial), one generator per case; (B, *spatial) int64.

    The smallest of K exponential waiting times with rates p is k with probability p[k]; a label of probability 0 never is.
    """
    check_generators(generators, probabilities)
    waits = torch.stack([torch.empty(probabilities.shape[1:]).exponential_(generator=g) for g in generators])
    waits = waits.clamp(min=torch.finfo(waits.dtype).tiny)  # a uniform draw of exactly 0 gives a waiting time of 0
    return (probabilities / sent(waits, probabilities.device)).argmax(1)


def check_generators(generators: Sequence[Generator], x: Tensor) -> None:
    """Raises ConfigError unless there is one generator for each case of the batch `x`."""
    if len(generators) != len(x):
        raise ConfigError(
            f"Drawing labels needs one generator per case; found {len(generators)} for {len(x)}. "
            f"Give as many torch generators as the batch has cases."
        )


class Posterior(nn.Module):
    """A Denoiser of one-hot maps: x = x0 + sigma * eps, D(x, sigma, cond) = softmax(F(c_in * (x - 1/K), c_noise, cond)).

    A one-hot voxel lies at 1/K on the mean over its channels, with variance s^2 = (K - 1) / K^2, whatever its label: with
    c_in = 1 / sqrt(sigma^2 + s^2) the network's input has mean 0 and variance 1 for any labels at any sigma.
    c_noise = ln(sigma) / 4 as in the "edm" row, within -2.5..2.5. At sigma = inf the network is shown zeros and 2.5, and x
    may hold anything; inf and finite sigmas may stand in one batch.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:  # a Network of `classes` channels in and out
        super().__init__()
        check_classes(classes)
        self.network, self.classes = network, classes

    def logits(self, x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's output for x (B, K, *spatial) and sigma () or (B,); what the loss needs."""
        check_channels(x, self.classes)
        level, wide = at_level(sigma, x), wide_level(sigma, x)
        shown = (x - 1 / self.classes) * (wide**2 + (self.classes - 1) / self.classes**2).rsqrt()
        shown = _nothing_where(wide.isinf(), shown)
        return self.network(shown, (level.log() / 4).clamp(-C_NOISE, C_NOISE), cond).to(x.dtype)

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """The probability of every label, (B, K, *spatial), of the dtype of x."""
        return self.logits(x, sigma, cond).softmax(1)


class LabelPosterior(nn.Module):
    """The denoiser of the discrete process: of corrupted label maps as one-hot x, with the survival probability for sigma.

    D(x, survival, cond) = softmax(F((x - 1/K) / s, c_noise, cond)), s^2 = (K - 1) / K^2: mean 0 and variance 1 at every
    survival. c_noise = ln((1 - survival) / survival) / 4, within -2.5..2.5: that of sigma = (1 - a) / a, the sigma of a
    rectified flow whose data weigh a. At survival = 0 the network is shown zeros, and x may hold anything.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:  # a Network of `classes` channels in and out
        super().__init__()
        check_classes(classes)
        self.network, self.classes = network, classes

    def logits(self, x: Tensor, survival: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's output for x (B, K, *spatial) and survival () or (B,) in 0..1; what the loss needs."""
        check_channels(x, self.classes)
        level, wide = at_level(survival, x), wide_level(survival, x)
        shown = _nothing_where(wide == 0, (x - 1 / self.classes) * (self.classes / sqrt(self.classes - 1)))
        return self.network(shown, (-level.logit() / 4).clamp(-C_NOISE, C_NOISE), cond).to(x.dtype)

    def forward(self, x: Tensor, survival: Tensor, cond: Condition | None = None) -> Tensor:
        """The probability of every label, (B, K, *spatial), of the dtype of x."""
        return self.logits(x, survival, cond).softmax(1)


def _nothing_where(blind: Tensor, shown: Tensor) -> Tensor:
    """What the network is shown, and 0 where it must know nothing of x; blind () or (B, 1, ...)."""
    if blind.ndim == 0:
        return torch.zeros_like(shown) if blind else shown
    return torch.where(blind, 0.0, shown)


def check_classes(classes: int) -> None:
    """Raises ConfigError for fewer than two classes."""
    if classes < 2:
        raise ConfigError(f"A posterior needs at least 2 classes, background included; found {classes}.")


def check_channels(x: Tensor, classes: int) -> None:
    """Raises ConfigError unless x is (B, classes, *spatial)."""
    if x.ndim < 3 or x.shape[1] != classes:
        raise ConfigError(
            f"The posterior of {classes} classes needs one-hot maps (B, {classes}, *spatial); found {tuple(x.shape)}. "
            f"Labels as one channel of numbers are not accepted: use one_hot()."
        )
