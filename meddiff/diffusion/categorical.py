"""The discrete process on label maps with a uniform transition kernel: a voxel keeps its label, or gets any of the K.

Multinomial diffusion (Hoogeboom et al. 2021) and the uniform D3PM (Austin et al. 2021), in continuous noise level. The
level is the survival probability a in 0..1, `q(x_t | x0) = a * onehot(x0) + (1 - a) / K`: 1 is the label map itself, 0 no
information. It has the three verbs of the Gaussian process, `corrupt`, `loss`, `step`, and its denoisers are Denoisers: of
one-hot maps (B, K, *spatial), with the survival in place of sigma. So guidance, windows and averages hold for both.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.diffusion.losses import label_loss
from meddiff.diffusion.posterior import UNKNOWN, LabelPosterior, check_generators, drawn, one_hot, one_hot_of_classes
from meddiff.diffusion.samplers import OnStep
from meddiff.diffusion.sigmas import karras
from meddiff.errors import ConfigError


def corrupt(
    labels: Tensor,  # (B, *spatial)
    survival: Tensor,  # () or (B,), in 0..1
    generators: Sequence[Generator],  # one per case
    classes: int,
    unknown: int = UNKNOWN,  # such a voxel gets any label
) -> Tensor:
    """A draw from q(x_t | x0), (B, *spatial) int64 in 0..classes-1."""
    check_generators(generators, labels)
    shape = labels.shape[1:]
    chance = torch.stack([torch.rand(shape, generator=g) for g in generators]).to(labels.device)
    other = torch.stack([torch.randint(classes, shape, generator=g) for g in generators]).to(labels.device)
    wide = survival.to(chance).reshape(-1, *[1] * (labels.ndim - 1))
    return torch.where((chance < wide) & (labels != unknown), labels.long(), other)


def loss(
    model: LabelPosterior,
    labels: Tensor,  # (B, *spatial)
    survival: Tensor,  # (B,), in 0..1
    generators: Sequence[Generator],  # one per case
    cond: Condition | None = None,
    *,
    cross_entropy: float = 1.0,
    dice: float = 1.0,
    unknown: int = UNKNOWN,
) -> Tensor:
    """`label_loss` of the predicted x0 for a corrupted map, per case; shape (B,).

    The cross-entropy of x0 alone, which Austin et al. 2021 (section 3.4) add to the variational bound: it has the same
    minimum, the posterior q(x0 | x_t), and does not weigh the levels by how the bound splits between them.
    """
    x = one_hot(corrupt(labels, survival, generators, model.classes, unknown), model.classes)
    logits = model.logits(x, survival, cond).float()
    return label_loss(logits, labels, cross_entropy=cross_entropy, dice=dice, unknown=unknown)


def transition(labels: Tensor, probabilities: Tensor, a_from: float, a_to: float) -> Tensor:
    """p(x_s | x_t) = sum over x0 of q(x_s | x_t, x0) D(x0), from survival a_from to a_to; (B, K, *spatial).

    labels (B, *spatial) are x_t and probabilities (B, K, *spatial) are D. With r = a_from / a_to,
    q(x_s | x_t, x0) = (r [x_s = x_t] + (1 - r) / K) (a_to [x_s = x0] + (1 - a_to) / K) / q(x_t | x0)
    (Hoogeboom et al. 2021, eq. 15), so the sum takes O(K) work a voxel. At a_to = 1 it is D, at a_from = 0 D corrupted.
    """
    if not 0 <= a_from < a_to <= 1:
        raise ConfigError(
            f"A step of the discrete process goes from a survival to a larger one, within 0..1; found {a_from} to {a_to}."
        )
    classes = probabilities.shape[1]
    here = one_hot_of_classes(labels, classes).to(probabilities)
    weight = probabilities / (a_from * here + (1 - a_from) / classes)
    stay = a_from / a_to
    spread = a_to * weight + (1 - a_to) / classes * weight.sum(1, keepdim=True)
    return (stay * here + (1 - stay) / classes) * spread


def step(
    labels: Tensor,  # (B, *spatial), x_t
    probabilities: Tensor,  # (B, K, *spatial), D(x_t)
    a_from: float,
    a_to: float,
    generators: Sequence[Generator],  # one per case
) -> Tensor:
    """A draw from `transition`, (B, *spatial) int64: the labels at survival a_to."""
    return drawn(transition(labels, probabilities, a_from, a_to), generators)


def grid(n: int, sigma_min: float = 0.3, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Survivals on the way of `n` evaluations: 0, then a = 1 / (1 + sigma) on the `karras` grid, then 1; shape (n + 1,).

    Where n voxels change together they show it at a of about 1 / sqrt(n): the first steps must be small for a large region
    to be drawn as a whole, and even steps leave it to the likelier of its labels. The defaults are measured on regions of 1
    to 4096 voxels.

    >>> grid(4)
    tensor([0.0000, 0.0123, 0.1060, 0.7692, 1.0000])
    """
    if n < 1:
        raise ConfigError(f"A sampling grid needs at least 1 step; found {n}. Correct sample.steps.")
    sigmas = karras(n - 1, sigma_min, sigma_max, rho)[:-1] if n > 1 else torch.zeros(0)
    return torch.cat([torch.zeros(1), 1 / (1 + sigmas), torch.ones(1)])


@torch.no_grad()
def sample(
    denoise: Denoiser,  # of the discrete process
    x: Tensor,  # (B, K, *spatial), one-hot labels at survivals[0]; at survival 0 they do not matter
    survivals: Tensor,  # (n + 1,), increasing
    cond: Condition | None = None,
    generators: Sequence[Generator] | None = None,  # one per case
    on_step: OnStep | None = None,  # called as on_step(i, x, d): the new state as a one-hot map, and D
) -> Tensor:
    """Ancestral sampling, n evaluations: the state at the last survival, (B, K, *spatial).

    A last survival of 1 takes the last D itself, as the Gaussian samplers do at sigma 0, rather than labels drawn from it:
    the average over samples is the better for it. Draw from it by `drawn` where a single sample has to be a label map.
    """
    ways = generators or ()
    check_generators(ways, x)
    levels = survivals.tolist()
    if any(b <= a for a, b in itertools.pairwise(levels)) or not 0 <= levels[0] < levels[-1] <= 1:
        raise ConfigError(f"The discrete process needs strictly increasing survivals within 0..1; found {levels}.")
    for i, (a_from, a_to) in enumerate(itertools.pairwise(levels)):
        d = denoise(x, survivals[i].to("cpu", x.dtype), cond)
        x = d if a_to == 1 else one_hot_of_classes(step(x.argmax(1), d, a_from, a_to, ways), x.shape[1]).to(x)
        if on_step:
            on_step(i, x, d)
    return x
