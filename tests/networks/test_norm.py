"""Group normalisation in the layout where torch's own is slow."""

import pytest
import torch
from torch import nn

from meddiff.networks.norm import LAYOUTS, GroupNorm


def gradients(norm, x, slope):
    """Of the input, the weight and the bias."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad((norm(x) * slope).sum(), (x, norm.weight, norm.bias))


@pytest.mark.parametrize(
    "size", [(2, 16, 8, 8), (3, 8, 5, 7), (2, 16, 32, 32), (1, 64, 4, 4), (2, 16, 4, 6, 8), (1, 8, 3, 3, 3)]
)
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_gradients_are_those_of_the_plain_layout(size, offset):
    torch.manual_seed(0)
    norm = GroupNorm(4, size[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(size) + offset).bfloat16().contiguous(memory_format=LAYOUTS[len(size)])
    slope = torch.randn(size)
    plain = nn.GroupNorm(4, size[1])
    plain.load_state_dict(norm.state_dict())
    expected = gradients(plain, x.float().contiguous(), slope)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(norm(x).float(), plain(x.float()), rtol=1e-2, atol=2e-2)
    for found, wanted in zip(gradients(norm, x, slope), expected, strict=True):
        assert (found.float() - wanted).norm() < 0.02 * wanted.norm()


def test_the_layout_is_kept():
    norm, layout = GroupNorm(2, 4), torch.channels_last
    x = torch.randn(2, 4, 6, 6).bfloat16().contiguous(memory_format=layout).requires_grad_()
    with torch.no_grad():
        assert norm(x).is_contiguous(memory_format=layout)
    y = norm(x)
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert y.is_contiguous(memory_format=layout)
    assert grad.is_contiguous(memory_format=layout)


def test_in_float32_it_is_torchs_own():
    norm, plain = GroupNorm(2, 4), nn.GroupNorm(2, 4)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    assert torch.equal(norm(x), plain(x))
