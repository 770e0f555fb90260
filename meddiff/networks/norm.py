"""Group normalisation that is fast in 16 bits: where channels lie side by side on a CPU, and of large maps on a GPU."""

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
FEW = 1024  # voxels, below which torch 2.13 goes from group to group,
VECTOR = 16  # which is slow where a group has fewer channels than this
LARGE = 1 << 22  # values, from which on a GPU is busy enough with them for the small sums beside not to count
PARTS = 16  # sums over voxels are taken of so many parts in bfloat16, and of those in float32


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, to rounding.

    On a CPU torch 2.13's own takes twice as long there for few voxels, and its backward pass 10 to 20 times as long as for
    (B, C, *spatial). On CUDA autocast computes it in float32, with copies before and after: here float32 is what sums and
    products are taken in, and not what is written.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same shape."""
        if torch.compiler.is_compiling() or x.ndim not in LAYOUTS:
            return super().forward(x)
        settings = self.weight, self.bias, self.num_groups, self.eps
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=LAYOUTS[x.ndim]):
            return _SideBySide.apply(x, *settings) if torch.is_grad_enabled() else _normalised(x, *settings)[0]
        half = x.dtype in (torch.bfloat16, torch.float16)
        if x.device.type == "cuda" and half and x.numel() >= LARGE and x.is_contiguous():
            return _Half.apply(x, *settings) if torch.is_grad_enabled() else _normalised_in_half(x, *settings)[0]
        return super().forward(x)


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


def _normalised_in_half(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised x on CUDA, and mean and 1 / standard deviation of every channel's group, (B * C,) float32."""
    batch, channels = x.shape[:2]
    with torch.autocast("cuda", enabled=False):
        values = x.view(batch, groups, -1)
        mean = values.mean(2, dtype=torch.float32)
        square = torch.linalg.vector_norm(values, dim=2, dtype=torch.float32).square() / values.shape[2]
        rstd = (torch.addcmul(square, mean, mean, value=-1).clamp_(min=0) + eps).rsqrt()
        mean, rstd = (v.repeat_interleave(channels // groups, 1).view(-1) for v in (mean, rstd))
        planes = x.view(1, batch * channels, -1)
        y = torch.batch_norm_elemt(planes, weight.float().repeat(batch), bias.float().repeat(batch), mean, rstd, eps)
    return y.view_as(x), mean, rstd


class _Half(torch.autograd.Function):
    """As `_SideBySide`, for (B, C, *spatial) on CUDA; the sums are those of torch's SyncBatchNorm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, mean, rstd = _normalised_in_half(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        batch, channels = x.shape[:2]
        each = channels // ctx.groups
        with torch.autocast("cuda", enabled=False):
            slope, values = (v.contiguous().view(1, batch * channels, -1) for v in (grad, x))
            voxels, wide = values.shape[2], weight.float()
            found = torch.batch_norm_backward_reduce(slope, values, mean, rstd, wide.repeat(batch), True, False, False)
            to_bias, apart = (v.view(batch, channels) for v in found[:2])  # sums of slope, and of slope * (x - mean)
            mean, rstd = mean.view(batch, channels), rstd.view(batch, channels)
            to_weight = apart * rstd

            def over_group(v: Tensor) -> Tensor:  # mean over the voxels and channels of a group, (B, C)
                return (v * wide).view(batch, ctx.groups, each).mean(2).repeat_interleave(each, 1) / voxels

            of_x = -rstd * rstd * over_group(to_weight)
            rest = -rstd * over_group(to_bias) - of_x * mean
            of_slope, of_x, rest = (v.to(x.dtype).view(1, -1, 1) for v in (wide * rstd, of_x, rest))
            to_x = torch.addcmul(rest, slope, of_slope).addcmul_(values, of_x)
        return to_x.view_as(x), to_weight.sum(0).to(weight.dtype), to_bias.sum(0).to(weight.dtype), None, None
