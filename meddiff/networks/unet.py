"""One U-Net for 2D and 3D: the network F inside a denoiser, for any image size.

Sizes need not divide by anything, attention stands only where it is asked for, and memory can be traded for time. What
makes it learn fast: every level also sees the image at its own resolution and adds to the output there (the pyramids of
Song et al. 2021, appendix H), and for the finest detail it only says how much of the input's to keep. `plain` is the network of
Ho et al. 2020 as MONAI builds it, so that MONAI's weights can be loaded.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddiff.diffusion.denoiser import Condition
from meddiff.errors import NetworkError
from meddiff.networks.blocks import (
    Attention,
    Down,
    ResBlock,
    Up,
    Upsample,
    convolution,
    depth_to_space,
    detail,
    doubled,
    halved,
    head,
    sinusoids,
    space_to_depth,
    unit,
    wide,
)


class UNet(nn.Module):
    """U-Net F(x, c_noise, cond) that predicts what the table of parametrisations asks for.

    Raises NetworkError if the settings contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # of x, without the condition
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128),  # per level; each level halves the size
        blocks: int | Sequence[int] = 2,  # residual blocks per level, each way
        attention: Sequence[bool] | None = None,  # per level; None: nowhere
        head_channels: int | Sequence[int] = 32,  # channels of one attention head, per level
        norm_groups: int = 8,  # must divide every entry of `channels`
        cond_channels: int = 0,  # of cond.image, which is concatenated to x
        classes: int = 0,  # of cond.label
        covariates: int = 0,  # of cond.covariates, scaled to about zero mean, unit spread
        dropout: float = 0.0,  # inside the residual blocks
        checkpointing: bool = False,  # recompute the residual blocks in the backward pass: less memory
        noise_scale: float = 1.0,  # c_noise is multiplied by it before the embedding
        middle_attention: bool | None = None,  # None: as the deepest level; MONAI's networks always have it
        patch: int = 1,  # work at 1/patch of the resolution: blocks of voxels as channels
        plain: bool = False,  # as MONAI: one more block per level on the way up, no pyramids, no gain
    ) -> None:
        super().__init__()
        levels = len(channels)
        numbers = per_level("blocks", blocks, levels)
        attends = per_level("attention", False if attention is None else attention, levels)
        heads = per_level("head_channels", head_channels, levels)
        check_settings(spatial_dims, channels, numbers, norm_groups)
        middle = bool(attends[-1] if middle_attention is None else middle_attention)
        check_heads([*channels, channels[-1]], [*attends, middle], [*heads, heads[-1]])
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.norm_groups, self.attention = tuple(channels), norm_groups, tuple(map(bool, attends))
        self.cond_channels, self.classes, self.covariates = cond_channels, classes, covariates
        self.noise_scale, self.patch, self.plain = noise_scale, patch, plain
        self.gain = not plain and out_channels == in_channels  # the output is of the kind of x: x's own detail helps
        self.multiple = patch * 2 ** (levels - 1)  # voxels; what a size is padded to

        width = 4 * channels[0]  # of the embedding
        conv = partial(convolution, spatial_dims)
        block = partial(
            ResBlock,
            spatial_dims=spatial_dims,
            embedding=width,
            groups=norm_groups,
            dropout=dropout,
            checkpointing=checkpointing,
            plain=plain,
        )
        voxels = patch**spatial_dims  # of a patch
        seen, said = (in_channels + cond_channels) * voxels, (1 + self.gain) * out_channels * voxels

        def attend(level: int, wanted: bool) -> nn.Module:
            return Attention(channels[level], heads[level], norm_groups) if wanted else nn.Identity()

        self.noise_embed = nn.Sequential(nn.Linear(channels[0], width), nn.SiLU(), nn.Linear(width, width))
        if classes:
            self.class_embedding = nn.Embedding(classes + 1, width)  # the last row is 'no class'
        if covariates:
            self.covariate_embed = nn.Sequential(nn.Linear(2 * covariates, width), nn.SiLU(), nn.Linear(width, width))
        self.conv_in = conv(seen, channels[0])
        self.coarse_in = nn.ModuleList([] if plain else [conv(seen, n, kernel=1) for n in channels[:-1]])

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [channels[0]] if plain else []  # channels of what the way down leaves for the way up
        for level, (own, number) in enumerate(zip(channels, numbers, strict=True)):
            inputs = [channels[max(level - 1, 0)], *[own] * (number - 1)]
            stride = conv(own, own, stride=2) if level < levels - 1 else None
            self.down_blocks.append(
                Down([block(n, own) for n in inputs], [attend(level, attends[level]) for _ in inputs], stride, plain)
            )
            skips += [own] * (number + (plain and stride is not None))

        deepest = channels[-1]
        self.middle_block = nn.ModuleDict(
            {
                "resnet_1": block(deepest, deepest),
                "attention": attend(levels - 1, middle),
                "resnet_2": block(deepest, deepest),
            }
        )

        for level in reversed(range(levels)):
            own = channels[level]
            inputs = [channels[min(level + 1, levels - 1)], *[own] * (numbers[level] - (not plain))]
            self.up_blocks.append(
                Up(
                    [block(n + skips.pop(), own) for n in inputs],
                    [attend(level, attends[level]) for _ in inputs],
                    Upsample(conv(own, own)) if level else None,
                )
            )

        finish = partial(head, spatial_dims, norm_groups)
        self.coarse_out = nn.ModuleList([] if plain else [finish(n, said) for n in reversed(channels[1:])])
        self.out = finish(channels[0], said)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        """Output (B, out_channels, *spatial) for x (B, in_channels, *spatial) and c_noise () or (B,).

        Raises NetworkError if x is too small, or x or the condition is not what the network was built for.
        """
        cond = Condition() if cond is None else cond
        self.check_size(x)
        self.check_condition(x, cond)
        emb = F.silu(self.embed(x, c_noise, cond))  # (B, width); every block starts with this SiLU
        image = x if cond.image is None else torch.cat([x, cond.image.to(x.dtype)], dim=1)
        image = self.padded(image)
        seen = space_to_depth(image, self.patch)
        h = self.conv_in(seen)
        skips = [h] if self.plain else []
        for level, down in enumerate(self.down_blocks):
            if level and not self.plain:
                seen = halved(seen)
                h = h + self.coarse_in[level - 1](unit(seen))
            h = down(h, emb, skips)
        h = self.middle_block["resnet_1"](h, emb)
        h = self.middle_block["attention"](h)
        h = self.middle_block["resnet_2"](h, emb)
        said: Tensor | None = None
        for step, up in enumerate(self.up_blocks):
            assert isinstance(up, Up)
            h = up(h, emb, skips)
            if up.upsampler is not None:
                if not self.plain:
                    here = self.coarse_out[step](h)
                    said = doubled(here if said is None else said + here)
                h = up.upsampler(h)
        here = self.out(h)
        out = depth_to_space(here if said is None else here + said, self.patch, self.spatial_dims)
        if self.gain:
            out, gain = wide(out).chunk(2, dim=1)
            out = torch.addcmul(out, gain, unit(detail(wide(image[:, : self.in_channels]))))
        crop: tuple = (..., *(slice(n) for n in x.shape[2:]))
        return out[crop]  # (B, out_channels, *spatial)

    def embed(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        """Sum of the embeddings of noise level, class and covariates, (B, width); x gives batch, device and dtype."""
        batch = x.shape[0]
        level = self.noise_scale * c_noise.to(x.device, torch.float32).reshape(-1).expand(batch)
        emb = self.noise_embed(sinusoids(level, self.channels[0]).to(x.dtype))
        if self.classes:
            label = x.new_full((batch,), -1, dtype=torch.long) if cond.label is None else cond.label
            emb = emb + self.class_embedding(torch.where(label < 0, self.classes, label))
        if self.covariates:
            values = x.new_full((batch, self.covariates), math.nan) if cond.covariates is None else cond.covariates
            known = ~values.isnan()  # an unknown value is 0 and flagged as unknown
            emb = emb + self.covariate_embed(torch.cat([values.where(known, 0.0), known], dim=1).to(x.dtype))
        return emb

    def padded(self, x: Tensor) -> Tensor:
        """The image, mirrored past its far ends until every size is a multiple of `self.multiple`."""
        missing = [-n % self.multiple for n in x.shape[2:]]
        if not any(missing):
            return x
        return F.pad(x, [side for n in reversed(missing) for side in (0, n)], mode="reflect")

    def check_size(self, x: Tensor) -> None:
        """Raise NetworkError unless x has the right axes and channels, and is large enough."""
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise NetworkError(
                f"The network takes x as (batch, {self.in_channels}, {self.spatial_dims} sizes), found shape "
                f"{tuple(x.shape)}. Check network.spatial_dims and the channels of the data."
            )
        size, least = tuple(x.shape[2:]), self.multiple // 2 + 1  # mirroring needs more voxels than it adds
        single = self.channels[-1] == self.norm_groups and max(size) <= self.multiple  # GroupNorm of one value is 0
        if min(size) < least or single:
            smallest = (self.multiple + 1 if single else least, *[least] * (self.spatial_dims - 1))
            raise NetworkError(
                f"Size {size} is too small for {len(self.channels)} levels with patch={self.patch}; the "
                f"smallest is {smallest}. Use larger images, or fewer levels."
            )

    def check_condition(self, x: Tensor, cond: Condition) -> None:
        """Raise NetworkError unless the condition has what the network was built for, in the sizes of x."""
        image, label, covariates = cond.image, cond.label, cond.covariates
        found = None if image is None else tuple(image.shape)
        expected = (x.shape[0], self.cond_channels, *x.shape[2:]) if self.cond_channels else None
        if found != expected:
            raise NetworkError(
                f"The condition image has shape {found}, expected {expected}. Build the network with "
                f"the task's cond_channels (now {self.cond_channels}), and give images of x's size."
            )
        if label is not None and (not self.classes or label.shape != x.shape[:1]):
            raise NetworkError(
                f"The class labels have shape {tuple(label.shape)}, expected one for each of {x.shape[0]} "
                f"images, and a network built for classes (now classes={self.classes})."
            )
        if covariates is not None and (not self.covariates or covariates.shape != (x.shape[0], self.covariates)):
            raise NetworkError(
                f"The covariates have shape {tuple(covariates.shape)}, expected "
                f"{(x.shape[0], self.covariates)}. Build the network with their number (now "
                f"covariates={self.covariates}), and give NaN for what is unknown."
            )

    def extra_repr(self) -> str:
        """What tells two networks apart, and the number of parameters."""
        count = sum(p.numel() for p in self.parameters())
        return (
            f"{self.spatial_dims}D, {self.in_channels}+{self.cond_channels} -> {self.out_channels} channels, "
            f"levels {self.channels}, attention {self.attention}, {count:,} parameters"
        )


def per_level(name: str, value: object, levels: int) -> tuple:
    """One value per level; raises NetworkError if there is another number of them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
    if len(values) != levels:
        raise NetworkError(
            f"{name} has {len(values)} entries for {levels} levels (one per entry of channels). "
            f"Give {levels} entries, or one value for all."
        )
    return values


def check_settings(spatial_dims: int, channels: Sequence[int], blocks: Sequence[int], norm_groups: int) -> None:
    """Raise NetworkError if no network can be built of these."""
    if spatial_dims not in (2, 3) or not channels or min(blocks) < 1:
        raise NetworkError(
            f"Found spatial_dims={spatial_dims}, channels={tuple(channels)}, blocks={tuple(blocks)}; "
            "expected 2 or 3 dimensions, at least one level, and at least one block in each."
        )
    for level, n in enumerate(channels):
        if n % norm_groups:
            raise NetworkError(
                f"Level {level} has {n} channels, which norm_groups={norm_groups} does not divide. Use "
                f"norm_groups={math.gcd(norm_groups, *channels)}, or {n + -n % norm_groups} channels."
            )


def check_heads(channels: Sequence[int], attends: Sequence[bool], head_channels: Sequence[int]) -> None:
    """Raise NetworkError if the heads of an attention do not divide its channels."""
    for n, wanted, width in zip(channels, attends, head_channels, strict=True):
        if wanted and n % width:
            raise NetworkError(
                f"Attention on {n} channels cannot have heads of head_channels={width}. "
                f"Use head_channels={math.gcd(n, width)}, or {n + -n % width} channels."
            )
