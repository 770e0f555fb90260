import pytest
import torch
from torch import nn

from meddiff.diffusion.compose import averaged, windowed
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.posterior import LabelPosterior, Posterior, drawn, one_hot
from meddiff.errors import ConfigError, ImageError

INF = torch.tensor(torch.inf)


class Shows(nn.Module):
    """A network that says what it is shown, plus its condition, and keeps both."""

    def forward(self, x, c_noise, cond=None):
        self.shown = x, c_noise
        return x if cond is None else x + cond.image


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed * 10_000 + i) for i in range(n)]


def labels(n, classes, size=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, size, size, generator=g) ** 3 * classes).long()  # class 0 is by far the most common


def test_one_hot_has_channels_second_and_is_even_where_unknown():
    x0 = one_hot(torch.tensor([[0, 2, -1]]), 3)
    assert x0[0].T.tolist() == [[1, 0, 0], [0, 0, 1], pytest.approx([1 / 3] * 3)]
    torch.testing.assert_close(one_hot(torch.tensor([[0, 2, 255]], dtype=torch.uint8), 3, unknown=255), x0)


@pytest.mark.parametrize("wrong", [3, -2, 255])
def test_a_label_that_is_no_class_is_refused(wrong):
    with pytest.raises(ImageError, match="labels 0 to 2, or -1 where unknown; found"):
        one_hot(torch.tensor([[0, wrong]]), 3)


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_the_network_sees_unit_variance_at_every_sigma_whatever_the_labels(classes):
    x0 = one_hot(labels(5, classes), classes).double()
    sigma = torch.tensor([0.01, 0.3, 1.0, 10.0, 100.0])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = Posterior(Shows(), classes)
    model(x0 + sigma.double().view(-1, 1, 1, 1) * eps, sigma)
    shown = model.network.shown[0].flatten(1)
    torch.testing.assert_close(shown.square().mean(1), torch.ones(5).double(), rtol=0.06, atol=0)
    assert shown.mean(1).abs().max() < 0.05
    torch.testing.assert_close(model.network.shown[1], sigma.double().log() / 4)


@pytest.mark.parametrize("model", [Posterior(Shows(), 3), LabelPosterior(Shows(), 3)])
def test_the_denoiser_is_the_softmax_of_its_logits(model):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    level = torch.tensor([0.3, 0.7])
    torch.testing.assert_close(model(x, level), model.logits(x, level).softmax(1))
    torch.testing.assert_close(model(x, level).sum(1), torch.ones(2, 4, 5))


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), torch.inf), 1e30 * torch.ones(1, 2, 3, 3)]
)
def test_without_information_the_posterior_is_a_function_of_the_condition_alone(x):
    cond = Condition(image=torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(3)))
    expected = cond.image.softmax(1)
    torch.testing.assert_close(Posterior(Shows(), 2)(x, INF, cond), expected, rtol=0, atol=0)
    torch.testing.assert_close(LabelPosterior(Shows(), 2)(x, torch.tensor(0.0), cond), expected, rtol=0, atol=0)


def test_c_noise_is_finite_at_every_level():
    gaussian, discrete = Posterior(Shows(), 2), LabelPosterior(Shows(), 2)
    gaussian(torch.zeros(4, 2, 3), torch.tensor([0.0, 1.0, 1e30, torch.inf]))
    discrete(torch.zeros(4, 2, 3), torch.tensor([1.0, 0.5, 1e-30, 0.0]))
    for model in (gaussian, discrete):
        torch.testing.assert_close(model.network.shown[1], torch.tensor([-2.5, 0.0, 2.5, 2.5]))


def test_informed_and_uninformed_cases_stand_in_one_batch():
    model, x = Posterior(Shows(), 2), torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(4))
    together = model(x, torch.tensor([torch.inf, 0.7]))
    torch.testing.assert_close(together[:1], model(x[:1], INF))
    torch.testing.assert_close(together[1:], model(x[1:], torch.tensor(0.7)))


@pytest.mark.parametrize("process", [Posterior, LabelPosterior])
def test_posteriors_compose_as_denoisers_do(process):
    model, x = process(Shows(), 3), torch.randn(2, 3, 20, 17, generator=torch.Generator().manual_seed(5))
    level = torch.tensor(0.4)
    torch.testing.assert_close(windowed(model, (8, 8), (4, 4))(x, level), model(x, level))
    torch.testing.assert_close(averaged([model, model])(x, level), model(x, level))


@pytest.mark.parametrize("process", [Posterior, LabelPosterior])
def test_labels_as_numbers_in_one_channel_are_refused(process):
    with pytest.raises(ConfigError, match=r"one-hot maps \(B, 3, \*spatial\); found \(1, 1, 4, 4\)"):
        process(Shows(), 3)(torch.zeros(1, 1, 4, 4), torch.tensor(0.5))
    with pytest.raises(ConfigError, match="at least 2 classes"):
        process(Shows(), 1)


def test_draws_have_the_right_shares_and_never_an_impossible_label():
    p = torch.tensor([0.7, 0.0, 0.2, 0.1])
    shares = drawn(p.view(1, 4, 1, 1).expand(4, 4, 100, 100), generators(4)).flatten().bincount(minlength=4) / 40_000
    assert shares[1] == 0
    torch.testing.assert_close(shares, p, rtol=0, atol=0.01)  # four standard errors


def test_a_draw_does_not_depend_on_its_batch_and_needs_its_generator():
    p = torch.rand(3, 4, 6, 6, generator=torch.Generator().manual_seed(6))
    assert torch.equal(drawn(p, generators(3))[2:], drawn(p[2:], generators(3)[2:]))
    with pytest.raises(ConfigError, match="one generator per case; found 1 for 3"):
        drawn(p, generators(1))
