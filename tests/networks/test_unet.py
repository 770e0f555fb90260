"""The U-Net: sizes, conditions, memory, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from redrawn import redrawn

from meddiff.diffusion.denoiser import Condition
from meddiff.errors import NetworkError
from meddiff.networks.blocks import Attention, Upsample, convolution, depth_to_space, doubled, halved, space_to_depth
from meddiff.networks.unet import UNet

NOISE = torch.tensor([-0.5, 0.7])  # c_noise of a batch of two


def small(**settings):
    """A redrawn two-level network; keyword arguments change it."""
    return redrawn(
        UNet(
            **{
                "spatial_dims": 2,
                "in_channels": 1,
                "out_channels": 1,
                "channels": (8, 16),
                "blocks": 1,
                "norm_groups": 4,
                "head_channels": 8,
                **settings,
            }
        )
    )


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (3, 13), (1, 5), (5, 6, 7), (3, 3, 4)])
@pytest.mark.parametrize("patch", [1, 2])
def test_output_has_the_size_of_the_input(size, patch):
    least = patch + 1  # of two levels
    size = tuple(max(n, least) for n in size)
    network = small(spatial_dims=len(size), in_channels=2, out_channels=3, patch=patch)
    out = network(images(2, 2, *size), NOISE)
    assert out.shape == (2, 3, *size)
    assert out.std() > 0.01


def test_padding_mirrors_the_far_end_so_the_near_end_is_where_it_was():
    network = small(channels=(8, 16, 16))
    x = images(1, 1, 6, 7)
    mirrored = F.pad(x, (0, 1, 0, 2), mode="reflect")
    torch.testing.assert_close(network(x, NOISE[0]), network(mirrored, NOISE[0])[..., :6, :7])


def test_noise_level_of_the_batch_may_be_one_number():
    network = small()
    x = images(2, 1, 8, 8)
    torch.testing.assert_close(network(x, NOISE[1]), network(x, NOISE[1].expand(2)))
    assert (network(x, NOISE[0]) - network(x, NOISE[1])).abs().max() > 1e-3


def test_noise_scale_multiplies_the_noise_level():
    one, thousand = small(), small(noise_scale=1000.0)
    x = images(2, 1, 8, 8)
    torch.testing.assert_close(thousand(x, NOISE), one(x, 1000.0 * NOISE))


@pytest.mark.parametrize("plain", [False, True])
def test_an_untrained_network_says_zero(plain):
    network = UNet(spatial_dims=2, in_channels=1, out_channels=1, attention=(False, False, True), plain=plain)
    assert not network(images(2, 1, 8, 8), NOISE).any()


def test_the_blocks_of_an_untrained_plain_network_pass_their_input():
    network = UNet(spatial_dims=2, in_channels=1, out_channels=2, attention=(False, False, True), plain=True)
    h = images(2, 32, 4, 4)
    assert torch.equal(network.down_blocks[0].resnets[0](h, images(2, 128)), h)
    assert torch.equal(Attention(32, 8, 8)(h), h)


@pytest.mark.parametrize(
    ("attention", "middle", "number"),
    [
        (None, None, 0),
        ((False, True), None, 1 + 1 + 1),
        ((True, False), None, 1 + 1),
        (None, True, 1),
        ((False, True), False, 1 + 1),
    ],
)
def test_attention_stands_only_where_asked_for(attention, middle, number):
    network = small(attention=attention, middle_attention=middle)
    assert sum(isinstance(m, Attention) for m in network.modules()) == number


@pytest.mark.parametrize("size", [(6, 7), (4, 5, 6)])
def test_attention_sees_every_voxel(size):
    seeing, blind = (
        small(spatial_dims=len(size), channels=(8,), attention=(wanted,), plain=True) for wanted in (True, False)
    )
    x = images(1, 1, *(4 * n for n in size))
    far = x.clone()
    far[(..., *[-1] * len(size))] += 3.0
    corner = (0, 0, *[0] * len(size))

    def answers(network, x):
        # GroupNorm also looks at the whole image, so it stands aside here
        for m in network.modules():
            if isinstance(m, torch.nn.GroupNorm):
                m.forward = lambda h: h
        return network(x, NOISE[0])[corner]

    assert answers(seeing, x) != answers(seeing, far)
    assert answers(blind, x) == answers(blind, far)


def test_attention_equals_its_formula():
    attend = redrawn(Attention(8, 4, 2))
    x = images(2, 8, 3, 5)
    tokens = attend.norm(x).flatten(2).transpose(1, 2)  # (2, 15, 8)
    q, k, v = attend.qkv(tokens).chunk(3, dim=2)
    heads = [(q[..., i : i + 4] @ k[..., i : i + 4].mT / 2.0).softmax(-1) @ v[..., i : i + 4] for i in (0, 4)]
    expected = x + attend.out_proj(torch.cat(heads, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attend(x), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(dropout):
    plain = small(attention=(False, True), dropout=dropout).train()
    saving = small(attention=(False, True), dropout=dropout, checkpointing=True).train()
    gradients = []
    for network in (plain, saving):
        x = images(2, 1, 9, 8).requires_grad_()
        with torch.random.fork_rng():
            torch.manual_seed(3)  # dropout draws from the global generator
            network(x, NOISE).square().mean().backward()
        gradients.append([x.grad, *(p.grad for p in network.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("train", "grad", "expected"), [(True, True, 2), (True, False, 1), (False, True, 1)])
def test_checkpointing_recomputes_only_in_training_with_gradients(train, grad, expected):
    network = small(checkpointing=True).train(train)
    calls = []
    network.middle_block["resnet_1"].conv1.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(grad):
        out = network(images(1, 1, 8, 8), NOISE[0]).sum()
    if grad:
        out.backward()
    assert len(calls) == expected


def test_condition_image_is_seen_beside_x():
    network = small(cond_channels=2, out_channels=2)
    x, image = images(2, 1, 7, 8), images(2, 2, 7, 8, seed=2)
    joined = small(in_channels=3, out_channels=2)
    joined.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x, NOISE, Condition(image=image)), joined(torch.cat([x, image], 1), NOISE))


def test_a_dropped_class_is_the_row_of_no_class():
    network = small(classes=3)
    x = images(2, 1, 8, 8)
    dropped = network(x, NOISE, Condition(label=torch.tensor([-1, 2])))
    assert torch.equal(dropped[0], network(x, NOISE)[0])  # no condition at all: no class
    third = network(x, NOISE, Condition(label=torch.tensor([2, 2])))
    assert torch.equal(dropped[1], third[1])
    network.class_embedding.weight.data[3] = network.class_embedding.weight.data[2]
    assert torch.equal(network(x, NOISE), third)


def test_an_unknown_covariate_is_neither_zero_nor_not_a_number():
    network = small(covariates=2)
    x = images(2, 1, 8, 8)
    rows = torch.tensor([[0.3, torch.nan], [torch.nan, torch.nan]])
    out = network(x, NOISE, Condition(covariates=rows))
    assert out.isfinite().all()
    assert torch.equal(out[1], network(x, NOISE)[1])  # none given: all unknown
    zero = network(x, NOISE, Condition(covariates=rows.nan_to_num(0.0)))
    assert ((out - zero).abs().amax((1, 2, 3)) > 1e-4).all()


def test_gradients_stay_finite_where_a_covariate_is_unknown():
    network = small(covariates=2).train()
    network(images(2, 1, 8, 8), NOISE, Condition(covariates=torch.full((2, 2), torch.nan))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("size", [(12, 10), (6, 8, 10)])
def test_the_gain_multiplies_the_detail_of_x_and_of_x_only(size):
    network = small(spatial_dims=len(size), cond_channels=1)
    x, cond = images(2, 1, *size), Condition(image=images(2, 1, *size, seed=2))
    low = network(x, NOISE, cond)
    network.out[2].bias.data[1] += 0.5  # the gain, in all places
    network.out[2].bias.data[0] += 0.25
    flat = x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False) if len(size) == 2 else None
    if flat is None:
        flat = x - F.avg_pool3d(x, 5, 1, 2, count_include_pad=False)
    spread = flat.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt()
    torch.testing.assert_close(network(x, NOISE, cond), low + 0.25 + 0.5 * flat / spread, atol=1e-4, rtol=1e-4)


def test_coarse_levels_see_the_image_at_their_own_resolution():
    network = small()
    x, seen = images(2, 1, 8, 8), []
    network.coarse_in[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(x, NOISE)
    mean = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(seen[0], mean / mean.square().mean((1, 2, 3), keepdim=True).sqrt(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (4, 6, 8)])
def test_depth_to_space_undoes_space_to_depth(size):
    x = images(2, 3, *size)
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 3 * 2 ** len(size), *(n // 2 for n in size))
    assert torch.equal(depth_to_space(folded, 2, len(size)), x)
    last = folded[
        (1, slice(3 * 2 ** len(size) - 2 ** len(size), None), *[1] * len(size))
    ]  # third channel, second block
    assert torch.equal(last, x[(1, 2, *[slice(2, 4)] * len(size))].flatten())


@pytest.mark.parametrize("size", [(1, 3), (5, 4, 3)])
def test_upsampling_equals_repetition_and_convolution_in_value_and_gradient(size):
    conv = convolution(len(size), 2, 3).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    results = []
    for y in (Upsample(conv)(x), conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))):
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, conv.weight, conv.bias))))
    torch.testing.assert_close(*results)


def test_space_to_depth_is_pixel_unshuffle_in_2d():
    x = images(2, 3, 6, 9)
    assert torch.equal(space_to_depth(x, 3), F.pixel_unshuffle(x, 3))
    assert torch.equal(depth_to_space(F.pixel_unshuffle(x, 3), 3, 2), x)


@pytest.mark.parametrize("size", [(9, 8), (5, 6, 7)])
def test_bfloat16_autocast_is_finite_and_near(size):
    network = small(spatial_dims=len(size), attention=(False, True), classes=2, covariates=1, patch=1)
    x, cond = images(2, 1, *size), Condition(label=torch.tensor([0, -1]), covariates=torch.tensor([[1.0], [torch.nan]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, NOISE, cond)
        out.float().sum().backward()
    exact = network(x, NOISE, cond)
    assert out.dtype == torch.float32  # x's own detail is weighed in float32
    assert (out - exact).norm() < 0.03 * exact.norm()  # 2**-8 a layer, about ten layers
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_an_image_does_not_depend_on_its_batch():
    network = small(attention=(False, True))
    x = images(2, 1, 8, 8)
    torch.testing.assert_close(network(x, NOISE)[1:], network(x[1:], NOISE[1:]))


def test_weights_and_their_copy_give_the_same_output():
    network = small(classes=2, covariates=1)
    x = images(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(network)(x, NOISE), network(x, NOISE))


def test_repr_counts_the_parameters():
    network = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(8,), blocks=1, cond_channels=2)
    count = sum(p.numel() for p in network.parameters())
    assert f"2D, 1+2 -> 1 channels, levels (8,), attention (False,), {count:,} parameters" in repr(network)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"channels": (8, 20), "norm_groups": 8},
            r"Level 1 has 20 channels.*norm_groups=8.*norm_groups=4, or 24 channels",
        ),
        (
            {"attention": (False, True), "head_channels": 12},
            r"on 16 channels.*head_channels=12.*head_channels=4, or 24",
        ),
        ({"middle_attention": True, "head_channels": (8, 12)}, r"Attention on 16 channels.*head_channels=12"),
        ({"attention": (True,)}, r"attention has 1 entries for 2 levels.*Give 2 entries"),
        ({"blocks": (1, 2, 3)}, r"blocks has 3 entries for 2 levels"),
        ({"blocks": 0}, r"blocks=\(0, 0\); expected .* at least one block"),
        ({"spatial_dims": 1}, r"spatial_dims=1.*expected 2 or 3"),
        ({"channels": ()}, r"channels=\(\).*at least one level"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(NetworkError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        (
            {"channels": (8, 8, 16)},
            (2, 9),
            r"Size \(2, 9\) is too small for 3 levels with patch=1; the smallest is \(3, 3\)",
        ),
        ({"patch": 2}, (9, 2), r"Size \(9, 2\) .* patch=2; the smallest is \(3, 3\)"),
        ({"channels": (8, 8), "norm_groups": 8}, (2, 2), r"Size \(2, 2\) is too small .* the smallest is \(3, 2\)"),
    ],
)
def test_sizes_too_small_for_the_deepest_level_are_refused(settings, size, message):
    with pytest.raises(NetworkError, match=message):
        small(**settings)(images(1, 1, *size), NOISE[0])


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"channels": (8, 8, 16)}, (3, 3)),
        ({"patch": 2}, (3, 3)),
        ({"channels": (8, 8), "norm_groups": 8}, (3, 2)),
    ],
)
def test_the_smallest_size_named_is_accepted(settings, least):
    assert small(**settings)(images(1, 1, *least), NOISE[0]).shape[2:] == least


@pytest.mark.parametrize(
    ("settings", "x", "cond", "message"),
    [
        ({}, (2, 3, 8, 8), None, r"takes x as \(batch, 1, 2 sizes\), found shape \(2, 3, 8, 8\)"),
        ({}, (2, 1, 8, 8, 8), None, r"found shape \(2, 1, 8, 8, 8\)"),
        ({"cond_channels": 1}, (2, 1, 8, 8), None, r"condition image has shape None, expected \(2, 1, 8, 8\)"),
        ({}, (2, 1, 8, 8), Condition(image=torch.zeros(2, 1, 8, 8)), r"shape \(2, 1, 8, 8\), expected None"),
        (
            {"cond_channels": 1},
            (2, 1, 8, 8),
            Condition(image=torch.zeros(2, 1, 8, 9)),
            r"\(2, 1, 8, 9\), expected \(2, 1, 8, 8",
        ),
        ({}, (2, 1, 8, 8), Condition(label=torch.zeros(2).long()), r"class labels have shape \(2,\).*classes=0"),
        (
            {"classes": 2},
            (2, 1, 8, 8),
            Condition(label=torch.zeros(3).long()),
            r"labels .*\(3,\), expected one for each of 2",
        ),
        ({}, (2, 1, 8, 8), Condition(covariates=torch.zeros(2, 1)), r"covariates have shape \(2, 1\).*covariates=0"),
        ({"covariates": 2}, (2, 1, 8, 8), Condition(covariates=torch.zeros(2, 1)), r"\(2, 1\), expected \(2, 2\)"),
    ],
)
def test_inputs_that_the_network_was_not_built_for_are_refused(settings, x, cond, message):
    with pytest.raises(NetworkError, match=message):
        small(**settings)(torch.zeros(x), NOISE, cond)


@pytest.mark.parametrize("size", [(4, 6), (1, 3), (3, 4, 5)])
def test_doubling_is_linear_interpolation_with_its_gradient(size):
    x = images(2, 3, *size).requires_grad_()
    mode = "bilinear" if len(size) == 2 else "trilinear"
    expected = F.interpolate(x, scale_factor=2.0, mode=mode)
    weights = images(*expected.shape, seed=2)
    torch.testing.assert_close(doubled(x), expected)
    given, wanted = (torch.autograd.grad((out * weights).sum(), x)[0] for out in (doubled(x), expected))
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("size", [(8, 6), (8, 6, 4), (7, 6, 5)], ids=str)
def test_halving_with_a_gradient_is_halving_without_one(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    seen, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = halved(seen)
    wanted = (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(other, 2)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(halved(x), wanted)
    slope = torch.randn_like(wanted)
    found.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(seen.grad, other.grad)
