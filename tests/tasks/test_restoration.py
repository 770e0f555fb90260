"""What a model of a degradation learns from a batch."""

import pytest
import torch
from torch import nn

from meddiff.config import DataConfig
from meddiff.diffusion.answered import Restored
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.seeds import generator
from meddiff.tasks.restoration import Restoration


class Constant(nn.Module):
    """A network that says one number; how many images it was shown."""

    def __init__(self):
        super().__init__()
        self.value, self.shown = nn.Parameter(torch.tensor(0.3)), 0

    def forward(self, x, c_noise, cond=None):
        self.shown += len(x)
        return self.value.expand_as(x)


def losses(share, training=True, samples=True, steps=1.0, seed=0):
    data = DataConfig(manifest="m.jsonl", spacing_mm=(1, 1), size=(8, 8), degradation={"kind": "gaussian"})
    task = Restoration(data, share, steps)
    first, second = Preconditioned(Constant(), sigma_data=0.5), Preconditioned(Constant(), sigma_data=0.4)
    model = Restored(first, second if samples else None, 1).train(training)
    image = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x0, cond = task.example({"image": image, "seed": torch.arange(8)})
    sigma = torch.linspace(0.1, 2, 8)
    found = task.losses(model, x0, cond, sigma, [generator(seed, "noise", i) for i in range(8)])
    return found, first.network, second.network


def test_the_second_network_learns_from_its_share_of_the_batch_as_if_it_were_all():
    every, _, _ = losses(1.0)
    direct, _, _ = losses(1.0, samples=False)
    some, first, second = losses(0.25)
    assert (first.shown, second.shown) == (8, 2)
    torch.testing.assert_close(some[:2], direct[:2] + 4 * (every[:2] - direct[:2]))
    torch.testing.assert_close(some[2:], direct[2:])


def test_a_loss_that_is_reported_is_that_of_every_image():
    torch.testing.assert_close(losses(0.25, training=False)[0], losses(1.0)[0])


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_at_least_one_image_is_left_to_the_second_network(share):
    found, _, second = losses(share)
    assert second.shown == max(1, round(share * 8))
    found.sum().backward()
    assert second.value.grad.abs() > 0


def test_in_steps_without_it_the_second_network_is_left_alone_and_they_are_as_many_as_asked_for():
    direct, _, _ = losses(1.0, samples=False)
    runs = [losses(1.0, steps=0.25, seed=seed) for seed in range(200)]
    left_alone = [found for found, _, second in runs if second.shown == 0]
    assert abs(len(left_alone) - 150) < 25  # four standard deviations
    assert all(torch.equal(found, direct) for found in left_alone)
    assert losses(1.0, training=False, steps=0.25)[2].shown == 8
