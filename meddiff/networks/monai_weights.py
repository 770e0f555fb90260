"""Weights of MONAI's `DiffusionModelUNet` (1.6) in our `UNet`: the same output, for any size."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from meddiff.errors import NetworkError
from meddiff.networks.unet import UNet

# MONAI's parameter names as regular expressions, and ours; its q, k and v become one matrix besides.
RENAMED = (
    (r"\.conv\.(weight|bias)$", r".\1"),  # its Convolution wraps the convolution
    (r"\bdownsampler\.op\b", "downsampler"),
    (r"\bupsampler\.postconv\b", "upsampler.conv"),
    (r"\btime_embed\b", "noise_embed"),
    (r"\btime_emb_proj\b", "embed_proj"),
    (r"\.attn\.", "."),
)
UNMAPPED = {
    "transformer_blocks": "cross-attention (with_conditioning=True)",
    "sampler.conv1": "resampling inside residual blocks (resblock_updown=True)",
}
SHOWN = 3  # differences named in an error


def from_monai_weights(unet: UNet, state: Mapping[str, Tensor]) -> UNet:
    """Load a MONAI `DiffusionModelUNet.state_dict()` into `unet`, in place, and return it.

    `norm_groups` and `head_channels` leave no trace in weights: build `unet` with MONAI's norm_num_groups and
    num_head_channels (32 and 8 by default), `plain=True`, `noise_scale=1` and `middle_attention=True`. If MONAI's class embedding has
    `unet.classes` rows, 'no class' becomes a row of zeros; with one row more, MONAI's last row is 'no class'.
    Raises NetworkError for what our U-Net has not, and where names or shapes differ.
    """
    for part, feature in UNMAPPED.items():
        if any(part in key for key in state):
            raise NetworkError(
                f"The MONAI weights have {feature}, which UNet has not. "
                "Keep such a network in MONAI, or train one without it."
            )
    weights = renamed(state)
    classes = weights.get("class_embedding.weight")
    if classes is not None and len(classes) == unet.classes:
        weights["class_embedding.weight"] = torch.cat([classes, classes.new_zeros(1, classes.shape[1])])
    found, expected = shapes(weights), shapes(unet.state_dict())
    wrong = [key for key in sorted(found | expected) if found.get(key) != expected.get(key)]
    if wrong:
        shown = "; ".join(
            f"{key}: found {found.get(key, 'none')}, expected {expected.get(key, 'none')}" for key in wrong[:SHOWN]
        )
        raise NetworkError(
            f"{len(wrong)} of the MONAI weights do not fit this UNet: {shown}. Build the UNet with "
            "MONAI's channels, blocks, attention levels and classes, with plain=True and middle_attention=True."
        )
    unet.load_state_dict(weights)
    return unet


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, with q, k and v joined."""
    weights = {}
    for key, tensor in state.items():
        for theirs, ours in RENAMED:
            key = re.sub(theirs, ours, key)
        weights[key] = tensor
    for key in [key for key in weights if ".to_q." in key]:
        parts = [key.replace(".to_q.", f".to_{name}.") for name in "qkv"]
        if all(part in weights for part in parts):
            weights[key.replace(".to_q.", ".qkv.")] = torch.cat([weights.pop(part) for part in parts])
    return weights


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every entry."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
