import math

import pytest
import torch
from oracles import finite
from torch import nn

from meddiff.diffusion.denoiser import Preconditioned
from meddiff.diffusion.losses import denoising_loss, label_loss, posterior_loss, stable_target
from meddiff.diffusion.posterior import Posterior, one_hot
from meddiff.errors import ImageError


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_labels(*shape, classes=3, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def test_certain_and_right_costs_nothing():
    labels = random_labels(2, 8, 8)
    torch.testing.assert_close(label_loss(100 * one_hot(labels, 3), labels), torch.zeros(2))


def test_cross_entropy_of_no_idea_is_ln_k_and_a_quarter_of_it_where_the_weight_is_a_quarter():
    loss = label_loss(torch.zeros(2, 3, 8, 8), random_labels(2, 8, 8), cross_entropy=0.25, dice=0)
    torch.testing.assert_close(loss, torch.full((2,), math.log(3) / 4))


def test_dice_is_that_of_milletari_with_one_voxel_added():
    logits, labels = random(2, 3, 6, 5), random_labels(2, 6, 5)
    p, g = logits.softmax(1), one_hot(labels, 3).double()
    expected = [
        1 - sum((2 * (p[b, k] * g[b, k]).sum() + 1) / (p[b, k] ** 2 + g[b, k] ** 2).sum().add(1) for k in range(3)) / 3
        for b in range(2)
    ]
    torch.testing.assert_close(label_loss(logits, labels, cross_entropy=0), torch.stack(expected))


def test_a_class_that_is_absent_and_not_predicted_costs_nothing():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 100
    torch.testing.assert_close(label_loss(logits, torch.zeros(1, 4, 4, dtype=torch.long)), torch.zeros(1))


@pytest.mark.parametrize("unknown", [-1, 255])
def test_unknown_voxels_count_for_nothing(unknown):
    logits, labels = random(2, 3, 6, 5), random_labels(2, 6, 5)
    partly = torch.where(torch.arange(5) < 3, labels, unknown)
    torch.testing.assert_close(
        label_loss(logits, partly, unknown=unknown), label_loss(logits[..., :3], labels[..., :3], unknown=unknown)
    )
    nowhere = torch.full_like(labels, unknown)
    torch.testing.assert_close(label_loss(logits, nowhere, unknown=unknown), torch.zeros(2, dtype=torch.float64))


def test_an_unknown_number_that_was_not_named_is_refused():
    with pytest.raises(ImageError, match="found 0 to 255"):
        label_loss(torch.zeros(1, 3, 2), torch.tensor([[0, 255]]))


def expected_gradient(loss, maps, weights):
    """The gradient of the expected loss in the logits at the exact marginals of `maps` drawn with `weights`."""
    marginals = (weights.view(-1, 1, 1) * one_hot(maps, 2).double()).sum(0, keepdim=True)
    logits = marginals.log().expand(len(maps), -1, -1).clone().requires_grad_()
    (loss(logits, maps) * weights).sum().backward()
    return logits.grad.sum(0)


@pytest.mark.parametrize("doubt", [[8, 9, 10], [8], [9, 10, 11, 12, 13, 14]])
def test_the_marginals_are_where_the_loss_is_least_and_where_plain_dice_is_not(doubt):
    """A lesion that is there for certain, and more of it that comes and goes, together or one voxel without the other."""
    maps = torch.zeros(4, 16, dtype=torch.long)
    maps[:, :3] = 1
    maps[1, doubt] = maps[2, doubt[:1]] = maps[3, 5] = 1
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def plain(logits, labels):
        p, g = logits.softmax(1), one_hot(labels, 2).to(logits)
        return 1 - ((2 * (p * g).sum(2) + 1) / ((p**2).sum(2) + (g**2).sum(2) + 1)).mean(1)

    assert expected_gradient(label_loss, maps, weights).abs().max() < 1e-12
    assert expected_gradient(plain, maps, weights).abs().max() > 1e-4


def test_dice_pulls_every_class_towards_the_truth_and_no_class_without_bound():
    logits = torch.full((1, 3, 400), -9.0)
    logits[:, 0] = 9  # certain that all is class 0
    labels = torch.zeros(1, 400, dtype=torch.long)
    labels[0, :200] = 1
    logits.requires_grad_()
    label_loss(logits, labels, cross_entropy=0).sum().backward()
    pull = logits.grad[0, :, :200].sum(1)
    assert pull[1] < 0 < pull[0]
    assert logits.grad.abs().sum(2).max() < 2


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, c_noise, cond=None):
        return self.mix(x) + c_noise.reshape(-1, 1, 1, 1)


def test_posterior_loss_is_the_label_loss_of_the_noisy_map():
    model, labels, eps = Posterior(Linear(), 3), random_labels(2, 6, 5), random(2, 3, 6, 5).float()
    sigma = torch.tensor([0.5, 2.0])
    x = one_hot(labels, 3) + sigma.view(-1, 1, 1, 1) * eps
    torch.testing.assert_close(posterior_loss(model, labels, eps, sigma), label_loss(model.logits(x, sigma), labels))


def test_a_case_without_information_trains_beside_others_and_needs_no_noise():
    model, labels, eps = Posterior(Linear(), 3), random_labels(2, 6, 5), random(2, 3, 6, 5).float()
    sigma = torch.tensor([torch.inf, 1.0])
    loss = posterior_loss(model, labels, eps, sigma)
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    other = torch.cat([torch.zeros(1, 3, 6, 5), eps[1:]])
    torch.testing.assert_close(posterior_loss(model, labels, other, sigma), loss, rtol=0, atol=0)


def test_the_stable_target_is_the_posterior_mean_of_a_finite_data_set():
    data = random(6, 1, 3, 3)
    x0, rest, sigma = data[2:4], torch.cat([data[:2], data[4:]]), torch.tensor([0.7, 3.0]).double()
    x = x0 + sigma.view(-1, 1, 1, 1) * random(2, 1, 3, 3, seed=5)
    for i in range(2):
        others = torch.cat([rest, x0[1 - i : 2 - i]])
        target = stable_target(x[i : i + 1], x0[i : i + 1], sigma[i : i + 1], others)
        torch.testing.assert_close(target, finite(data)(x[i : i + 1], sigma[i]))


def test_the_stable_target_is_the_image_itself_where_the_noise_tells_it_apart():
    x0, others = random(2, 1, 4, 4), random(5, 1, 4, 4, seed=2)
    x = x0 + 0.01 * random(2, 1, 4, 4, seed=3)
    torch.testing.assert_close(stable_target(x, x0, torch.full((2,), 0.01), others), x0)


def test_the_stable_target_leads_to_the_same_denoiser_with_a_smaller_loss():
    data = random(64, 1, 2, 2).float()
    x0, eps, sigma = data[:32], random(32, 1, 2, 2, seed=4).float(), torch.full((32,), 2.0)

    class Exact(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return finite(data)(x * 5**0.5, torch.tensor(2.0))  # c_in = 1 / sqrt(1 + 4)

    exact = Preconditioned(Exact(), "x0")
    plain = denoising_loss(exact, x0, eps, sigma)
    stable = torch.cat(
        [
            denoising_loss(
                exact, x0[i : i + 1], eps[i : i + 1], sigma[:1], reference=torch.cat([data[:i], data[i + 1 :]])
            )
            for i in range(32)
        ]
    )
    torch.testing.assert_close(stable, torch.zeros(32), atol=1e-6, rtol=0)
    assert plain.mean() > 0.1
