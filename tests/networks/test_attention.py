"""Attention over short sequences in bfloat16, which does not go through torch's fused kernel."""

import pytest
import torch
import torch.nn.functional as F

from meddiff.networks.blocks import SHORT, attention


def answers(act, tokens):
    """What comes of q, k and v, which are views as in a network, and the gradient of all three."""
    tokens = tokens.detach().requires_grad_()
    y = act(*tokens.unflatten(2, (3, -1, 8)).permute(2, 0, 3, 1, 4))
    return y, *torch.autograd.grad(y.float().square().sum(), tokens)


@pytest.mark.parametrize("number", [1, 49, SHORT, SHORT + 1])
def test_attention_is_torchs_to_rounding(number):
    tokens = torch.randn(2, number, 3 * 16, generator=torch.Generator().manual_seed(0))
    exact = answers(F.scaled_dot_product_attention, tokens.double())
    for found, expected in zip(answers(attention, tokens.bfloat16()), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_in_float32_it_is_torchs_own():
    tokens = torch.randn(2, 9, 48)
    for found, expected in zip(
        answers(attention, tokens), answers(F.scaled_dot_product_attention, tokens), strict=True
    ):
        assert torch.equal(found, expected)
