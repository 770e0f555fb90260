"""The parts of a U-Net: residual block, attention, one level down, one level up; the same code in 2D and 3D."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meddiff.networks.norm import GroupNorm

EPS = 1e-6  # of every GroupNorm, MONAI's
SHORT = 512  # tokens, whose scores are no memory to speak of
MAX_PERIOD = 10000  # of the noise embedding, as in Ho et al. 2020


class ResBlock(nn.Module):
    """Residual block: (B, inputs, *spatial) -> (B, outputs, *spatial).

    The embedding scales and shifts each channel (Nichol and Dhariwal 2021, section 3); `plain`: shifts it, as Ho et al.
    2020, in a block that starts as its skip connection.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        spatial_dims: int,
        embedding: int,
        groups: int,
        dropout: float,
        checkpointing: bool,
        plain: bool,
    ) -> None:
        super().__init__()
        self.checkpointing, self.plain = checkpointing, plain
        self.norm1 = GroupNorm(groups, inputs, eps=EPS)
        self.conv1 = convolution(spatial_dims, inputs, outputs)
        self.embed_proj = nn.Linear(embedding, outputs if plain else 2 * outputs)
        self.norm2 = GroupNorm(groups, outputs, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(spatial_dims, outputs, outputs)
        if plain:
            zeroed(self.conv2)
        same = inputs == outputs
        self.skip_connection = nn.Identity() if same else convolution(spatial_dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Block's output for x and the embedding (B, embedding); recomputed in the backward pass if checkpointing."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self.residual, x, emb, use_reentrant=False)
        return self.residual(x, emb)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The block's computation, without checkpointing."""
        h = self.conv1(norm_silu(self.norm1, x))  # (B, outputs, *spatial)
        change = self.embed_proj(emb)[(..., *[None] * (x.ndim - 2))]  # (B, outputs or twice that, 1, ...)
        if self.plain:
            h = norm_silu(self.norm2, h + change)
        else:
            scale, shift = change.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.skip_connection(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention between all voxels, residual: (B, C, *spatial) -> (B, C, *spatial)."""

    def __init__(self, channels: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = GroupNorm(groups, channels, eps=EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out_proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C), N voxels
        qkv = self.qkv(tokens).unflatten(2, (3, -1, self.head_channels))  # (B, N, 3, heads, head_channels)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_channels)
        h = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        return x + self.out_proj(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, *spatial)


class Down(nn.Module):
    """One level on the way down; what its blocks compute is also left in `skips`, and what is halved if `plain`."""

    def __init__(
        self, resnets: list[nn.Module], attentions: list[nn.Module], downsampler: nn.Module | None, plain: bool
    ) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsampler, self.plain = downsampler, plain

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attend in zip(self.resnets, self.attentions, strict=True):
            h = attend(block(h, emb))
            skips.append(h)
        if self.downsampler is not None:
            h = self.downsampler(h)  # (B, C, *spatial / 2)
            if self.plain:
                skips.append(h)
        return h


class Up(nn.Module):
    """One level on the way up, before its upsampler; each block takes the latest of `skips` beside its input."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], upsampler: nn.Module | None) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.upsampler = upsampler

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attend in zip(self.resnets, self.attentions, strict=True):
            h = attend(block(torch.cat([h, skips.pop()], dim=1), emb))
        return h


class Upsample(nn.Module):
    """Twice the size by repetition, then a convolution of 3 voxels an axis, computed as one transposed convolution of 4.

    Every output voxel sees 2 input voxels an axis, each under the sum of the weights that fall on its copies: the same
    numbers up to rounding, with 4 products for 9 in 2D and 8 for 27 in 3D.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        for axis in range(2, weight.ndim):
            first, middle, last = weight.unbind(axis)
            weight = torch.stack([last, middle + last, first + middle, first], axis)
        transposed = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d
        return transposed(x, weight.transpose(0, 1), bias, stride=2, padding=1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(width)) v for (B, heads, N, width); Vaswani et al. 2017, equation 1.

    A short sequence in bfloat16 on a CPU by plain products: torch 2.13's fused kernel takes 1.3 to 4 times as long to train there.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v)
    batch, width = q.shape[0], q.shape[3]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # (B * heads, N, width)
    scores = (q * width**-0.5) @ k.transpose(1, 2)  # (B * heads, N, N)
    return (scores.softmax(-1) @ v).unflatten(0, (batch, -1))


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """`silu(norm(x))`; where no gradient is wanted, the SiLU overwrites what the norm made."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def convolution(
    spatial_dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1
) -> nn.Conv2d | nn.Conv3d:
    """Convolution that keeps the size, up to the stride."""
    conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters 0, so that a residual branch adds nothing at the start of training."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def head(spatial_dims: int, groups: int, inputs: int, outputs: int) -> nn.Sequential:
    """From features to an output, 0 at the start of training."""
    conv = zeroed(convolution(spatial_dims, inputs, outputs))
    return nn.Sequential(GroupNorm(groups, inputs, eps=EPS), nn.SiLU(), conv)


def halved(x: Tensor) -> Tensor:
    """Averages of 2 voxels an axis, (B, C, *spatial / 2)."""
    if x.ndim == 4:
        return F.avg_pool2d(x, 2)
    if not x.requires_grad:
        return F.avg_pool3d(x, 2)
    for axis in range(2, 5):  # the backward pass of that on CUDA sums in another order each time
        x = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2)).mean(axis + 1)
    return x


def doubled(x: Tensor) -> Tensor:
    """Linear interpolation to twice the size, (B, C, *spatial * 2), as F.interpolate with its corners not aligned.

    Not that function itself: compiled for a CPU by torch 2.13, its gradient is lost; and on small maps it is the slower one.
    """
    for axis in range(2, x.ndim):
        last = x.shape[axis] - 1
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, last)], axis)  # the neighbours of each voxel,
        after = torch.cat([x.narrow(axis, 1, last), x.narrow(axis, last, 1)], axis)  # its own value past an end
        x = torch.stack([before.lerp(x, 0.75), after.lerp(x, 0.75)], axis + 1).flatten(axis, axis + 1)
    return x


def wide(x: Tensor) -> Tensor:
    """x in float32 at least: what is subtracted or squared must not be in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """Each channel of each image at root mean square 1; a channel of zeros stays one."""
    spatial = tuple(range(2, x.ndim))
    return x * (wide(x).square().mean(spatial, keepdim=True) + EPS).rsqrt()


def detail(x: Tensor, width: int = 5) -> Tensor:
    """x less its moving average over `width` voxels an axis, the average being over what lies inside the image."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return x - pool(x, width, 1, width // 2, count_include_pad=False)


def sinusoids(values: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of values (B,) at `channels // 2` frequencies; (B, channels), an odd last one is 0."""
    half = channels // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=values.device) / half)
    angles = values[:, None] * frequencies  # (B, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """Blocks of voxels as channels: (B, C, *spatial) -> (B, C * patch**dims, *spatial / patch), as pixel_unshuffle."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    split = [part for n in x.shape[2:] for part in (n // patch, patch)]
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]  # offsets inside a block beside the channel
    return x.reshape(*x.shape[:2], *split).permute(order).flatten(1, 1 + dims)


def depth_to_space(x: Tensor, patch: int, dims: int) -> Tensor:
    """Inverse of `space_to_depth`."""
    if patch == 1:
        return x
    order = [0, 1, *(axis for i in range(dims) for axis in (2 + dims + i, 2 + i))]
    size = [patch * n for n in x.shape[2:]]
    parts = x.unflatten(1, (-1, *[patch] * dims)).permute(order)  # (B, C, n1, patch, n2, patch, ...)
    return parts.reshape(x.shape[0], -1, *size)
