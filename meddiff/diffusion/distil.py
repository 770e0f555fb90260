"""Distillation to few evaluations: a student whose Euler steps are whole stretches of its teacher's path.

From (x, s) the teacher's probability flow leads to some x' at s' < s, in many evaluations. Euler's step leads there in one if
D(x, s) = (x' - r x) / (1 - r), r = s' / s. As d(x / sigma) / d sigma = -D / sigma^2, that is the mean of the teacher's D along the
stretch, weighted by 1 / sigma^2: something a denoiser's network can say, within the range of images. Training is regression on it:
the last stage of progressive distillation (Salimans and Ho 2022, appendix G), taken at once, several teacher's steps to one.
"""

from operator import itemgetter

import torch
from torch import Tensor

from meddiff.diffusion.denoiser import Condition, Denoiser, Preconditioned
from meddiff.diffusion.samplers import dpmpp_2m
from meddiff.errors import ConfigError


def stretches(sigmas: Tensor, evaluations: int) -> Tensor:
    """The teacher's grid (n + 1,) in `evaluations` pieces of equal length that share their ends; (evaluations, m + 1).

    >>> stretches(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), 2)
    tensor([[8., 4., 2.],
            [2., 1., 0.]])
    """
    if evaluations < 1 or (len(sigmas) - 1) % evaluations:
        raise ConfigError(
            f"A grid of {len(sigmas) - 1} steps does not part into {evaluations} stretches; use a multiple of evaluations."
        )
    return sigmas.unfold(0, (len(sigmas) - 1) // evaluations + 1, (len(sigmas) - 1) // evaluations)


def student_sigmas(sigmas: Tensor, evaluations: int) -> Tensor:
    """The student's grid: the ends of the teacher's stretches; (evaluations + 1,)."""
    pieces = stretches(sigmas, evaluations)
    return torch.cat([pieces[:, 0], pieces[-1:, -1]])


def chord(x: Tensor, x_next: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The D with which one Euler step leads from x at sigma to x_next at sigma_next; of their shape."""
    ratio = sigma_next / sigma
    return (x_next - ratio * x) / (1 - ratio)


@torch.no_grad()
def taught(
    teacher: Denoiser,
    x0: Tensor,  # (B, C, *spatial), model units
    eps: Tensor,  # unit Gaussian noise, of the shape of x0
    which: Tensor,  # (B,) int64: the stretch that each case is about
    sigmas: Tensor,  # (evaluations, m + 1), of `stretches`
    cond: Condition | None = None,
) -> tuple[Tensor, Tensor]:
    """What the student sees at the start of its stretch and the D that leads to where the teacher ends; of the shape of x0.

    The first stretch begins as a sample does, with noise alone. The teacher moves it to around D(x, sigma_max) before it
    sets out, as `draw_samples` does with an evaluation more; the student learns both in one.
    """
    seen, said = torch.empty_like(x0), torch.empty_like(x0)
    for number, levels in enumerate(sigmas):
        rows = which == number
        if not rows.any():
            continue
        start, here = levels[0].item(), None if cond is None else cond.map(itemgetter(rows))
        x = start * eps[rows] if number == 0 else x0[rows] + start * eps[rows]
        begin = x + teacher(x, levels[0], here) if number == 0 else x
        seen[rows] = x
        said[rows] = chord(x, dpmpp_2m(teacher, begin, levels, here), start, levels[-1].item())
    return seen, said


def distillation_loss(
    student: Preconditioned,
    teacher: Denoiser,
    x0: Tensor,  # (B, C, *spatial), model units
    eps: Tensor,  # unit Gaussian noise, of the shape of x0
    which: Tensor,  # (B,) int64: the stretch that each case is about
    sigmas: Tensor,  # (evaluations, m + 1), of `stretches`
    cond: Condition | None = None,
) -> Tensor:
    """Mean squared error between the student's output and what would lead it to where the teacher ends, per case; (B,).

    In the network's output space, as `denoising_loss` is.
    """
    x, d = taught(teacher, x0, eps, which, sigmas, cond)
    level = sigmas[:, 0].to(x0)[which]
    row = student.row(level, x)
    output = student.network(row.c_in * x, row.c_noise, cond)
    return (output.float() - student.target(d, x, level)).square().flatten(1).mean(1)
