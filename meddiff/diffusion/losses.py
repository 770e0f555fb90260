"""The training losses: one in the network's own output space for images, cross-entropy and Dice for label maps, the nats
of latents."""

import torch
from torch import Tensor

from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.posterior import UNKNOWN, Posterior, one_hot


def denoising_loss(
    model: Preconditioned,
    x0: Tensor,  # (B, C, *spatial), model units
    eps: Tensor,  # unit-variance noise, of the shape of x0
    sigma: Tensor,  # (B,)
    cond: Condition | None = None,
    reference: Tensor | None = None,  # (N, C, *spatial): other images that x may come from; see `stable_target`
    agrees: Tensor | None = None,  # (B, N) which of them have what is known of x0; all unless given
) -> Tensor:
    """Mean squared error between the network's output and `model.target`, per case; shape (B,).

    In the "edm" row this is the weighted loss of Karras et al. 2022, eq. 8, with effective weight 1 at every sigma.
    """
    level = sigma.to(x0)
    x = x0 + level.view(-1, *[1] * (x0.ndim - 1)) * eps
    if reference is not None:
        x0 = stable_target(x, x0, level, reference, agrees)
    row = model.row(level, x)
    output = model.network(row.c_in * x, row.c_noise, cond)
    return (output.float() - model.target(x0, x, level)).square().flatten(1).mean(1)


def stable_target(x: Tensor, x0: Tensor, sigma: Tensor, reference: Tensor, agrees: Tensor | None = None) -> Tensor:
    """The posterior mean of x = x0 + sigma * eps (B, C, *spatial) among its own x0 and N reference images; of x's shape.

    In place of x0 as the target, it leads to the same denoiser with less noise on the way: at a high sigma x could come from
    many images, and says little about its own (Xu, Tong and Jaakkola 2023, eq. 6). eps must be Gaussian, and of x0 nothing
    else may be known than what the reference images of `agrees` (B, N) have too, such as their class.
    """
    seen, own, others = x.flatten(1), x0.flatten(1), reference.to(x0).flatten(1)
    apart = torch.cat([(seen - own).square().sum(1, keepdim=True), torch.cdist(seen, others).square()], dim=1)
    if agrees is not None:
        apart[:, 1:].masked_fill_(~agrees, torch.inf)
    weights = (-apart / (2 * sigma.to(x0).unsqueeze(1) ** 2)).softmax(1)  # (B, 1 + N)
    return torch.addmm(weights[:, :1] * own, weights[:, 1:], others).view_as(x0)


def posterior_loss(
    model: Posterior,
    labels: Tensor,  # (B, *spatial)
    eps: Tensor,  # unit-variance noise, (B, K, *spatial)
    sigma: Tensor,  # (B,); inf trains the direct segmentation
    cond: Condition | None = None,
    *,
    cross_entropy: float = 1.0,
    dice: float = 1.0,
    unknown: int = UNKNOWN,
) -> Tensor:
    """`label_loss` of the posterior of one-hot maps under Gaussian noise, per case; shape (B,).

    A voxel of unknown label is shown as 1/K of every class plus noise, and adds nothing to the loss.
    """
    level = sigma.to(eps)
    x = one_hot(labels, model.classes, unknown).to(eps) + level.view(-1, *[1] * (eps.ndim - 1)) * eps
    logits = model.logits(x, level, cond).float()
    return label_loss(logits, labels, cross_entropy=cross_entropy, dice=dice, unknown=unknown)


def label_loss(
    logits: Tensor,  # (B, K, *spatial)
    labels: Tensor,  # (B, *spatial)
    *,
    cross_entropy: float = 1.0,  # weight of the mean over known voxels of -ln p(label), in nats
    dice: float = 1.0,  # weight of 1 - soft Dice, the mean over all K classes
    unknown: int = UNKNOWN,  # voxels of this label count for nothing
) -> Tensor:
    """Weighted cross-entropy and soft Dice, per case; shape (B,). A case without a known voxel costs 0.

    Soft Dice is that of Milletari et al. 2016, section 3, 2 sum(p g) / (sum(p^2) + sum(g^2)), one voxel being added above
    and below, so that an absent class that is not predicted has Dice 1. As 1 - Dice = sum((p - g)^2) / (sum(p^2) +
    sum(g^2)), it is a Brier score over the size of the class. Its value is this, its gradient is not: plain Dice is least
    away from the posterior (beyond it where voxels are in doubt each for itself, short of it where they are in doubt
    together), and D would not be E[x0 | x]. The gradient is that of the Brier score over the size to be expected,
    sum(p^2) + sum(p) held constant, which is zero on average exactly where p is the posterior.
    """
    known = (labels != unknown).unsqueeze(1)  # (B, 1, *spatial)
    truth = one_hot(labels, logits.shape[1], unknown).to(logits)
    log_p = logits.log_softmax(1)
    voxels = known.flatten(1).sum(1).clamp(min=1)
    entropy = -(truth * log_p * known).flatten(1).sum(1) / voxels
    p, g = (log_p.exp() * known).flatten(2), (truth * known).flatten(2)  # (B, K, voxels)
    brier, square = (p - g).square().sum(2), p.detach().square().sum(2)  # (B, K)
    lost = brier.detach() / (1 + square + g.square().sum(2))
    slope = (brier - brier.detach()) / (1 + square + p.detach().sum(2))  # 0, with a gradient
    return torch.add(cross_entropy * entropy, (lost + slope).mean(1), alpha=dice)


def kl_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Nats from N(mean, deviation^2) to N(0, 1), summed over all latents of a case; (B,)."""
    variance = deviation.float().square()
    return 0.5 * (mean.float().square() + variance - variance.log() - 1).flatten(1).sum(1)
