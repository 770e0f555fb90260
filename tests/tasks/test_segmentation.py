"""What segmentation trains: two networks side by side."""

import pytest
import torch

from meddiff.config import DiffusionConfig
from meddiff.diffusion.answered import AnsweredLabels
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.losses import label_loss
from meddiff.diffusion.posterior import LabelPosterior, Posterior
from meddiff.networks.unet import UNet
from meddiff.seeds import generator
from meddiff.tasks.segmentation import Segmentation


def network(inputs, cond_channels=0):
    torch.manual_seed(0)
    small = {"spatial_dims": 2, "channels": (8, 16), "blocks": 1, "norm_groups": 4}
    unet = UNet(**small, in_channels=inputs, out_channels=3, cond_channels=cond_channels)
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return unet


@pytest.mark.parametrize(("process", "kind"), [("gaussian", Posterior), ("categorical", LabelPosterior)])
def test_the_first_network_gets_the_gradient_of_a_direct_segmentation_and_the_second_its_own(process, kind):
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    label = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(2))
    gradients = []
    for name, second in (("direct", None), (process, network(3, 4))):
        model = kind(AnsweredLabels(network(1), second, 1), 3)
        noise = [generator(0, "noise", i) for i in range(2)]
        task = Segmentation(DiffusionConfig(process=name))
        task.losses(model, label, Condition(image), torch.tensor([0.5, 5.0]), noise).sum().backward()
        gradients.append([p.grad for p in model.network.first.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in second.parameters())


def test_in_steps_without_it_the_second_network_learns_nothing_and_they_are_as_many_as_asked_for():
    image, label = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    model = Posterior(AnsweredLabels(network(1), network(3, 4), 1), 3)

    def losses(steps, seed):
        task = Segmentation(DiffusionConfig(), steps)
        return task.losses(model, label, Condition(image), torch.ones(1), [generator(seed, "noise")]).item()

    with torch.no_grad():
        first = label_loss(model.network.answered(Condition(image)).image[:, 1:], label).item()
        found = [losses(0.25, seed) for seed in range(200)]
        assert abs(found.count(first) - 150) < 25  # four standard deviations
        assert losses(1.0, 0) > first
        model.eval()
        assert losses(0.25, 0) == losses(1.0, 0)
