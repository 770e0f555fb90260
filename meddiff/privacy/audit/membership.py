"""Membership inference: how well the model itself gives away whom it was trained on.

Every score is smaller for an image that looks trained on. All noise is shared by all images, so that only they differ.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.privacy.audit.statistics import Attack, attack, owners
from meddiff.seeds import generator

SIGMAS = (0.2, 0.5, 1.0, 2.0, 4.0)  # noise levels, in standard deviations of the training images
NOISES = 4  # at each level
BAND = (0.125, 0.5)  # of Nyquist's frequency: above the shape of the head, below grain
BATCH = 64
TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def attack_scores(
    denoise: Denoiser,
    x0: Tensor,  # (n, C, *size), model units
    cond: Condition | None,
    sigma_data: float,
    seed: int,
    device: torch.device,
    on_step: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """Scores (n,) of three attacks.

    loss  logarithm of the denoising error, averaged over SIGMAS, each the mean over the shared noises
    SimA  norm of the noise that the model sees in the image itself, at one small level (Rao, Qu and Moyer 2025)
    FCRE  the error at middle frequencies over what the image has there, averaged as the loss (after Zhao et al. 2025, who
          compare by structural similarity: images differ in how hard they are, and no denoiser knows their finest detail)
    """
    levels = [s * sigma_data for s in SIGMAS]
    noises = [torch.randn(x0.shape[1:], generator=generator(seed, "membership", j)) for j in range(NOISES)]
    inside = _band(x0.shape[2:])
    scores: dict[str, list[Tensor]] = {"loss": [], "SimA": [], "FCRE": []}
    for start in range(0, len(x0), BATCH):
        rows = slice(start, start + BATCH)
        x = x0[rows].to(device)
        here = None if cond is None else cond.map(lambda v: v[rows].to(device))  # noqa: B023 - called at once

        def answer(shift: Tensor | float, level: float) -> Tensor:
            return denoise(x + shift, torch.tensor(level, device=device), here).float()  # noqa: B023

        at_rest = (x - answer(0.0, levels[0])) / levels[0]
        scores["SimA"].append(at_rest.flatten(1).norm(dim=1).clamp_min(TINY).log().cpu())
        power = _within(x, inside)
        errors, middle = [], []
        for level in levels:
            left = [answer(level * eps.to(device), level) - x for eps in noises]
            errors.append(torch.stack([v.square().flatten(1).mean(1) for v in left]).mean(0).clamp_min(TINY).log())
            middle.append((torch.stack([_within(v, inside) for v in left]).mean(0) / power).log())
        scores["loss"].append(torch.stack(errors).mean(0).cpu())
        scores["FCRE"].append(torch.stack(middle).mean(0).cpu())
        if on_step:
            on_step()
    return {name: torch.cat(parts) for name, parts in scores.items()}


def attacks(
    members: Mapping[str, Tensor],  # scores of training images
    member_patients: Sequence[str],
    others: Mapping[str, Tensor],  # of held-out images
    other_patients: Sequence[str],
    false_positives: float,
    seed: int,
) -> dict[str, Attack]:
    """How well each score works on patients, whose score is the mean over their images."""
    return {
        name: attack(
            by_patient(scores, member_patients), by_patient(others[name], other_patients), false_positives, seed
        )
        for name, scores in members.items()
    }


def by_patient(scores: Tensor, patients: Sequence[str]) -> Tensor:
    """The mean of each patient's scores, in the order of the patients' names."""
    owner = owners(patients)
    counts = torch.bincount(owner)
    return torch.zeros(len(counts), dtype=torch.float64).index_add_(0, owner, scores.double()) / counts


def _band(size: Sequence[int]) -> Tensor:
    """Which frequencies are in the middle, of the shape of an FFT; all but the mean where an image is too small for it."""
    grids = torch.meshgrid(*(torch.fft.fftfreq(n) for n in size), indexing="ij")
    radius = 2 * sum(g.square() for g in grids) ** 0.5  # 1 is Nyquist's
    inside = (radius >= BAND[0]) & (radius <= BAND[1])
    return inside if inside.any() else radius > 0


def _within(images: Tensor, inside: Tensor) -> Tensor:
    """Power at the marked frequencies, (n,)."""
    axes = tuple(range(2, images.ndim))
    power = torch.fft.fftn(images.float(), dim=axes).abs().square().flatten(2)
    return power[..., inside.flatten().to(power.device)].sum((1, 2)).clamp_min(TINY)
