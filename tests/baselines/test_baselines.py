import pytest
import torch
from torch import nn

from meddiff.baseline_config import GANConfig, VAEConfig
from meddiff.baselines.gan import GAN
from meddiff.baselines.vae import VAE
from meddiff.config import NetworkConfig
from meddiff.seeds import generator

SIZE = {2: (8, 12), 3: (4, 4, 8)}


def built(kind, dims=2, patch=1, **settings):
    network = NetworkConfig(spatial_dims=dims, channels=(8, 16), blocks=1, patch=patch)
    torch.manual_seed(0)
    if kind == "vae":
        return VAE(VAEConfig(kind="vae", latent=5, **settings), network, SIZE[dims])
    return GAN(GANConfig(kind="gan", latent=5, **settings), network, SIZE[dims])


def generators(n, what="test"):
    return [generator(0, what, i) for i in range(n)]


def images(n, dims=2):
    return torch.rand(n, 1, *SIZE[dims], generator=generator(0, "images")) * 2 - 1


@pytest.mark.parametrize("kind", ["vae", "gan"])
@pytest.mark.parametrize(("dims", "patch"), [(2, 1), (2, 2), (3, 2)])
def test_samples_have_the_images_size_and_range(kind, dims, patch):
    model = built(kind, dims, patch).eval()
    with torch.no_grad():
        samples = model.sample(generators(3))
    assert samples.shape == (3, 1, *SIZE[dims])
    assert samples.abs().max() <= 1
    assert model.losses(images(3, dims), generators(3)).shape == (3,)


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_a_sample_does_not_depend_on_its_batch(kind):
    model = built(kind).eval()
    with torch.no_grad():
        both, alone = model.sample(generators(2)), model.sample(generators(2)[1:])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


class Known(nn.Module):
    """An autoencoder whose posterior and reconstruction are given."""

    def __init__(self, mean, log_variance, answer):
        super().__init__()
        self.mean, self.log_variance, self.answer = mean, log_variance, answer

    def encode_forward(self, x):
        return self.mean, self.log_variance

    def decode_forward(self, z, use_sigmoid):
        return self.answer


def test_the_bound_is_the_closed_form():
    model, x0 = built("vae"), images(2)
    mean, log_variance = torch.full((2, 5), 0.5), torch.full((2, 5), -1.0)
    model.network, model.last = Known(mean, log_variance, x0 + 0.25), nn.Identity()
    voxels = x0[0].numel()
    prior, posterior = (
        torch.distributions.Normal(torch.zeros(5), torch.ones(5)),
        torch.distributions.Normal(mean[0], (log_variance[0] / 2).exp()),
    )
    divergence = torch.distributions.kl_divergence(posterior, prior).sum()
    # -ln N(x0; x0 + 0.25, 0.25^2) per voxel, less the constant (1 + ln 2 pi) / 2 that no weight changes
    expected = torch.log(torch.tensor(0.25)) + divergence / voxels
    torch.testing.assert_close(model.losses(x0, generators(2)), expected.expand(2))


def test_each_network_of_the_pair_learns_from_its_own_loss_alone():
    model, x0 = built("gan", penalty=0.0), images(4)
    for block in (m for m in model.modules() if hasattr(m, "two")):
        nn.init.normal_(block.two.weight, std=0.1)
    model.losses(x0, generators(4)).sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        z = torch.cat([torch.randn(1, 5, generator=g) for g in generators(4)])
        drawn = model.painter(z)
    model.zero_grad()
    nn.functional.softplus(model.critic(drawn) - model.critic(x0)).sum().backward()
    for name, p in model.critic.named_parameters():
        torch.testing.assert_close(together[f"critic.{name}"], p.grad, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    nn.functional.softplus(model.critic(x0) - model.critic(model.painter(z))).sum().backward()
    for name, p in model.painter.named_parameters():
        torch.testing.assert_close(together[f"painter.{name}"], p.grad, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_the_squared_slope_of_a_linear_critic_at_both_images():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full(SIZE[2], 0.1))

        def forward(self, x):
            return (x[:, 0] * self.weight).sum((1, 2))

    x0, losses = images(3), []
    for penalty in (0.0, 2.0):
        model = built("gan", penalty=penalty)
        model.critic = Linear()
        with torch.no_grad():  # as a held-out loss is measured
            losses.append(model.losses(x0, generators(3)))
    torch.testing.assert_close(losses[1] - losses[0], torch.full((3,), 2 * 0.1**2 * 8 * 12), rtol=1e-4, atol=1e-4)


def trained(model, images, steps):
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3, betas=(0.0, 0.99))
    for step in range(steps):
        optimizer.zero_grad()
        model.losses(images, generators(len(images), f"step {step}")).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return model.eval().sample(generators(64))


def test_a_vae_draws_both_of_two_grey_levels():
    levels = torch.tensor([-0.6, 0.6])[torch.arange(16) % 2]
    samples = trained(built("vae"), levels.view(-1, 1, 1, 1).expand(-1, 1, *SIZE[2]), 600)
    means = samples.flatten(1).mean(1)
    assert (means > 0.3).double().mean() > 0.2
    assert (means < -0.3).double().mean() > 0.2


def test_a_gan_learns_the_only_image_there_is():
    image = torch.full((1, 1, *SIZE[2]), -0.6)
    image[..., 6:] = 0.6
    samples = trained(built("gan"), image.expand(8, -1, -1, -1), 100)
    assert (samples - image).square().mean() < 0.1  # a flat image of the right mean is at 0.36


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_what_was_learned_looks_more_familiar_than_what_was_not(kind):
    image = torch.full((1, 1, *SIZE[2]), -0.6)
    image[..., 6:] = 0.6
    model = built(kind)
    trained(model, image.expand(8, -1, -1, -1), 30)
    with torch.no_grad():
        (scores,) = model.memory(torch.cat([image, -image, image])).values()
    assert scores[0] < scores[1]
    torch.testing.assert_close(scores[0], scores[2])
