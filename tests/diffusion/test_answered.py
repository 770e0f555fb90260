"""A first answer from the condition alone, and what a sample adds to it."""

from math import inf

import pytest
import torch
from torch import nn

from meddiff.diffusion.answered import AnsweredLabels, Restored
from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.posterior import LabelPosterior, Posterior
from meddiff.errors import ConfigError


class Linear(nn.Module):
    """A network of its input, its c_noise and its condition, all of which matter; counts its calls."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.calls = outputs, 0

    def forward(self, x, c_noise, cond=None):
        self.calls += 1
        total = x.sum(1, keepdim=True) + c_noise.reshape(-1, *[1] * (x.ndim - 1))
        if cond is not None and cond.image is not None:
            total = total + cond.image.square().sum(1, keepdim=True)
        return total * torch.arange(1.0, self.outputs + 1).reshape(1, -1, *[1] * (x.ndim - 2)) / 10


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "blind"), [(Posterior, inf), (LabelPosterior, 0.0)])
def test_where_x_says_nothing_the_first_answer_stands(kind, blind):
    first, second = Linear(3), Linear(3)
    model = kind(AnsweredLabels(first, second, 1), 3)
    image, x = images(2, 1, 4, 4), images(2, 3, 4, 4, seed=1)
    expected = first(image, torch.zeros(())).softmax(1)
    torch.testing.assert_close(model(x, torch.tensor(blind), Condition(image)), expected)
    assert second.calls == 0
    level = torch.tensor([blind, 0.5])
    mixed = model(x, level, Condition(image))
    torch.testing.assert_close(mixed[0], expected[0])
    assert (mixed[1] - expected[1]).abs().max() > 1e-3


def test_an_answered_condition_gives_the_same_and_asks_the_first_network_once():
    first = Linear(3)
    model = Posterior(AnsweredLabels(first, Linear(3), 1), 3)
    image, x, sigma = images(2, 1, 4, 4), images(2, 3, 4, 4, seed=1), torch.tensor(0.7)
    direct = model(x, sigma, Condition(image))
    given = model.network.answered(Condition(image))
    calls = first.calls
    torch.testing.assert_close(model(x, sigma, given), direct)
    assert first.calls == calls
    assert model.network.answered(given) is given


def test_a_segmentation_without_an_image_is_refused():
    model = Posterior(AnsweredLabels(Linear(3), None, 1), 3)
    with pytest.raises(ConfigError, match=r"needs cond\.image"):
        model(images(1, 3, 4, 4), torch.tensor(1.0))


def test_the_restored_mean_is_the_denoiser_at_the_level_and_its_scale_is_c_out():
    first = Preconditioned(Linear(1), "edm", 0.5)
    model = Restored(first, None, 1)
    y, level = images(2, 1, 4, 4), torch.tensor([0.1, 0.4])
    m, s, given = model.answer(y, level, None)
    torch.testing.assert_close(m, first(y, level))
    torch.testing.assert_close(s.flatten(), level * 0.5 / (level**2 + 0.25).sqrt())
    torch.testing.assert_close(given.image, torch.cat([y, m], 1))
    torch.testing.assert_close(given.covariates, level.log().unsqueeze(1))
    assert not model(images(2, 1, 4, 4), torch.tensor(1.0), given).any()


def test_what_else_is_known_reaches_both_networks():
    first, second = Preconditioned(Linear(1), "edm", 0.5), Preconditioned(Linear(1), "edm", 0.4)
    model = Restored(first, second, 1)
    y, level, mask = images(1, 1, 4, 4), torch.tensor([0.1]), torch.ones(1, 1, 4, 4)
    m, _, given = model.answer(y, level, mask)
    other, _, _ = model.answer(y, level, 0 * mask)
    assert (m - other).abs().max() > 1e-4
    assert given.image.shape == (1, 3, 4, 4)
