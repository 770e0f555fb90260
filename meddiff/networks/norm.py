"""Group normalisation that is fast where channels lie side by side in bfloat16 on a CPU."""

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
FEW = 1024  # voxels, below which torch 2.13 goes from group to group,
VECTOR = 16  # which is slow where a group has fewer channels than this
PARTS = 16  # sums over voxels are taken of so many parts in bfloat16, and of those in float32


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, to rounding. torch 2.13's own takes twice as long there for few voxels, and its backward pass 10 to 20 times as
    long as for (B, C, *spatial)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same shape."""
        side_by_side = x.ndim in LAYOUTS and x.is_contiguous(memory_format=LAYOUTS[x.ndim])
        slow = side_by_side and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if not slow or torch.compiler.is_compiling():
            return super().forward(x)
        if torch.is_grad_enabled():
            return _SideBySide.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return _normalised(x, self.weight, self.bias, self.num_groups, self.eps)[0]


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised x, and mean and 1 / standard deviation of every group, (B, groups)."""
    batch, channels = x.shape[:2]
    voxels, each = x[0, 0].numel(), channels // groups
    if voxels >= FEW or each >= VECTOR:
        return torch.native_group_norm(x, weight, bias, batch, channels, voxels, groups, eps)
    values = x.movedim(1, -1).reshape(batch, voxels, channels).float()
    mean = values.mean(1).view(batch, groups, each).mean(2)
    values -= mean.repeat_interleave(each, 1)[:, None]
    rstd = (values.square().mean(1).view(batch, groups, each).mean(2) + eps).rsqrt()
    y = torch.addcmul(bias, values, (weight * rstd.repeat_interleave(each, 1))[:, None]).to(x.dtype)
    return y.view(batch, *x.shape[2:], channels).movedim(-1, 1), mean, rstd


class _SideBySide(torch.autograd.Function):
    """Wu and He 2018, equation 1, with y = weight * n + bias and n = (x - mean) * rstd over a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, mean, rstd = _normalised(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        batch, channels = x.shape[:2]
        each = channels // ctx.groups  # channels of a group
        mean, rstd = (v.float().repeat_interleave(each, 1) for v in (mean, rstd))  # (B, C)
        grad = grad.contiguous(memory_format=LAYOUTS[x.ndim])
        values, slope = (v.movedim(1, -1).reshape(batch, -1, channels) for v in (x, grad))  # (B, N, C), views
        voxels = values.shape[1]

        def total(v: Tensor) -> Tensor:  # (B, N, C) -> (B, C)
            parts = gcd(voxels, PARTS)
            return v.view(batch, parts, voxels // parts, channels).sum(2).float().sum(1)

        def over_group(v: Tensor) -> Tensor:  # mean over the voxels and channels of a group, (B, C)
            return (v * weight.float()).view(batch, ctx.groups, each).mean(-1).repeat_interleave(each, 1) / voxels

        to_bias = total(slope)
        to_weight = (total(slope * values) - to_bias * mean) * rstd
        # d loss / d x = rstd * (weight * slope - over_group(to_bias) - n * over_group(to_weight)), as a line in slope and x
        of_slope = weight.float() * rstd
        of_x = -rstd * rstd * over_group(to_weight)
        rest = -rstd * over_group(to_bias) - of_x * mean
        of_slope, of_x, rest = (v.to(x.dtype)[:, None] for v in (of_slope, of_x, rest))
        to_x = torch.addcmul(rest, slope, of_slope).addcmul_(values, of_x)
        to_x = to_x.view(batch, *x.shape[2:], channels).movedim(-1, 1)
        return to_x, to_weight.sum(0).to(weight.dtype), to_bias.sum(0).to(weight.dtype), None, None
