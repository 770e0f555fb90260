"""MONAI's `DiffusionModelUNet` is the oracle: the same weights must give the same output."""

from importlib.util import find_spec

import pytest
import torch
from monai.networks.blocks import crossattention, selfattention
from monai.networks.nets import DiffusionModelUNet
from redrawn import redrawn
from torch import nn

from meddiff.diffusion.denoiser import Condition
from meddiff.errors import NetworkError
from meddiff.networks.monai_weights import from_monai_weights
from meddiff.networks.unet import UNet


class Rearrange(nn.Module):
    """The three patterns of MONAI's attention, for where its optional einops is not installed."""

    def __init__(self, pattern, **sizes):
        super().__init__()
        self.pattern, self.heads = pattern, sizes.get("l")

    def forward(self, x):
        if self.pattern == "b h (l d) -> b l h d":
            return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.pattern == "b h (qkv l d) -> qkv b l h d":
            return x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        assert self.pattern == "b l h d -> b h (l d)"
        return x.transpose(1, 2).flatten(2)


@pytest.fixture(autouse=True)
def _attention_without_einops(monkeypatch):
    if find_spec("einops") is None:
        for module in (selfattention, crossattention):
            monkeypatch.setattr(module, "Rearrange", Rearrange)


def monai_network(spatial_dims=2, attention=(False, True), classes=None, blocks=(1, 2), **settings):
    """A small MONAI network with redrawn parameters."""
    return redrawn(
        DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=2,
            out_channels=1,
            channels=(8, 16),
            num_res_blocks=blocks,
            attention_levels=attention,
            norm_num_groups=4,
            num_head_channels=8,
            num_class_embeds=classes,
            **settings,
        )
    )


def our_network(spatial_dims=2, attention=(False, True), classes=0, blocks=(1, 2), **settings):
    return UNet(
        spatial_dims=spatial_dims,
        in_channels=2,
        out_channels=1,
        channels=(8, 16),
        blocks=blocks,
        norm_groups=4,
        attention=attention,
        head_channels=8,
        classes=classes,
        **{"middle_attention": True, "plain": True, **settings},
    ).eval()


def batch(size):
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([3.0, 741.0])


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 6)])
@pytest.mark.parametrize("attention", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("settings", [{}, {"use_combined_linear": True}, {"use_flash_attention": True}])
def test_the_same_weights_give_the_same_output(size, attention, settings):
    theirs = monai_network(len(size), attention, **settings)
    ours = from_monai_weights(our_network(len(size), attention), theirs.state_dict())
    x, timesteps = batch(size)
    expected = theirs(x, timesteps)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, timesteps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_same_classes_give_the_same_output(extra):
    theirs = monai_network(classes=3 + extra)
    ours = from_monai_weights(our_network(classes=3), theirs.state_dict())
    (x, timesteps), label = batch((8, 8)), torch.tensor([2, 0])
    torch.testing.assert_close(
        ours(x, timesteps, Condition(label=label)), theirs(x, timesteps, class_labels=label), rtol=1e-5, atol=1e-5
    )
    no_class = theirs.class_embedding.weight[3] if extra else torch.zeros(32)
    assert torch.equal(ours.class_embedding.weight[3], no_class)


def test_a_condition_image_takes_the_place_of_an_input_channel():
    theirs = monai_network()
    ours = UNet(
        spatial_dims=2,
        in_channels=1,
        cond_channels=1,
        out_channels=1,
        channels=(8, 16),
        blocks=(1, 2),
        norm_groups=4,
        attention=(False, True),
        head_channels=8,
        plain=True,
    ).eval()
    from_monai_weights(ours, theirs.state_dict())
    x, timesteps = batch((8, 8))
    torch.testing.assert_close(
        ours(x[:, :1], timesteps, Condition(image=x[:, 1:])), theirs(x, timesteps), rtol=1e-5, atol=1e-5
    )


def test_odd_sizes_work_with_weights_of_monai_which_refuses_them():
    theirs = monai_network()
    ours = from_monai_weights(our_network(), theirs.state_dict())
    x, timesteps = batch((9, 7))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(x, timesteps)
    assert ours(x, timesteps).shape == (2, 1, 9, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"with_conditioning": True, "cross_attention_dim": 4}, r"with_conditioning=True\), which UNet has not"),
        ({"resblock_updown": True}, r"resblock_updown=True\), which UNet has not"),
    ],
)
def test_what_our_network_has_not_is_refused(settings, message):
    with pytest.raises(NetworkError, match=message):
        from_monai_weights(our_network(), monai_network(**settings).state_dict())


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"middle_attention": False}, {"attention": (False, False)}, r"middle_block.attention.*middle_attention=True"),
        ({"attention": (True, True)}, {}, r"down_blocks.0.attentions.0.norm.bias: found none, expected \(8,\)"),
        ({"blocks": (1, 1)}, {}, r"down_blocks.1.attentions.1.*found \(16,\), expected none"),
        ({"classes": 2}, {"classes": 4}, r"class_embedding.weight: found \(4, 32\), expected \(3, 32\)"),
        ({"classes": 2}, {}, r"class_embedding.weight: found none"),
    ],
)
def test_weights_of_another_shape_are_refused_and_nothing_is_loaded(ours, theirs, message):
    network = our_network(**{"attention": theirs.get("attention", (False, True)), **ours})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(NetworkError, match=message):
        from_monai_weights(network, monai_network(**theirs).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_weights_cut_short_are_refused():
    state = {key: value for key, value in monai_network().state_dict().items() if ".to_k." not in key}
    with pytest.raises(NetworkError, match=r"of the MONAI weights do not fit"):
        from_monai_weights(our_network(), state)
