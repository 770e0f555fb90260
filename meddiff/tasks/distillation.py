"""Distillation: synthesis that is learned from a trained denoiser instead of from the images alone."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import Known
from meddiff.diffusion.denoiser import Condition, Denoiser, Preconditioned
from meddiff.diffusion.distil import distillation_loss
from meddiff.diffusion.noise import draw
from meddiff.tasks.synthesis import Synthesis


class Distillation(Synthesis):
    """Synthesis whose loss is the distance to where the teacher's path leads; the images say where paths are taken up."""

    def __init__(
        self,
        config: Config,
        known: Known | None,
        teacher: Denoiser,  # as its samples are drawn with
        sigmas: Tensor,  # (evaluations, m + 1): the stretches that the student takes in one
    ) -> None:
        super().__init__(config, known)
        self.teacher, self.sigmas = teacher, sigmas

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """The distillation loss, (B,), of a stretch drawn for every case: of `sigma` the student knows few values only."""
        assert isinstance(model, Preconditioned)
        which = torch.stack([torch.randint(len(self.sigmas), (), generator=g) for g in generators]).to(x0.device)
        eps = draw("gaussian", x0.shape[1:], generators, like=x0)
        return distillation_loss(model, self.teacher, x0, eps, which, self.sigmas, cond)
