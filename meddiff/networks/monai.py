"""A `DiffusionModelUNet` trained with a MONAI scheduler, as a denoiser: for sampling and composition like any other."""

import torch
from monai.networks.schedulers import RFlowScheduler, Scheduler
from torch import Tensor, nn

from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.sigmas import Timesteps
from meddiff.errors import NetworkError

ROWS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # MONAI's prediction types, our parametrisations


class _Adapted(nn.Module):
    """MONAI's network under our signature."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        cond = cond or Condition()
        image = x if cond.image is None else torch.cat([x, cond.image], dim=1)
        return self.unet(image, timesteps=c_noise.expand(len(x)), class_labels=cond.label)


def from_monai(unet: nn.Module, scheduler: Scheduler) -> Preconditioned:
    """The denoiser of a MONAI network and the scheduler it was trained with; x is in units of x0, not scaled by sqrt(a).

    The denoiser owns the schedule: MONAI keeps it outside the weights. NetworkError for an unknown prediction type.
    """
    if isinstance(scheduler, RFlowScheduler):
        return Preconditioned(_Adapted(unet), "monai_rflow")
    kind = str(getattr(scheduler, "prediction_type", "unknown"))
    if kind not in ROWS:
        raise NetworkError(f"The MONAI scheduler predicts {kind!r}; known are {', '.join(ROWS)} and RFlowScheduler.")
    return Preconditioned(_Adapted(unet), ROWS[kind], timesteps=Timesteps(scheduler.alphas_cumprod))
