"""The one training loss, in the network's own output space."""

from torch import Tensor

from meddiff.diffusion.denoiser import Condition, Preconditioned


def denoising_loss(
    model: Preconditioned,
    x0: Tensor,  # (B, C, *spatial), model units
    eps: Tensor,  # unit-variance noise, of the shape of x0
    sigma: Tensor,  # (B,)
    cond: Condition | None = None,
) -> Tensor:
    """Mean squared error between the network's output and `model.target`, per case; shape (B,).

    In the "edm" row this is the weighted loss of Karras et al. 2022, eq. 8, with effective weight 1 at every sigma.
    """
    level = sigma.to(x0)
    x = x0 + level.view(-1, *[1] * (x0.ndim - 1)) * eps
    row = model.row(level, x)
    output = model.network(row.c_in * x, row.c_noise, cond)
    return (output.float() - model.target(x0, x, level)).square().flatten(1).mean(1)
