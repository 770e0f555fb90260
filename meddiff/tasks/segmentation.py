"""Segmentation: `x0` is the label map, the image is given, and samples are label maps that agree with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from meddiff.config import DiffusionConfig
from meddiff.diffusion import categorical
from meddiff.diffusion.answered import AnsweredLabels
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.losses import label_loss, posterior_loss
from meddiff.diffusion.noise import draw
from meddiff.diffusion.posterior import LabelPosterior, Posterior, one_hot_of_classes
from meddiff.tasks.task import left_out


class Segmentation:
    """Label maps 0..K-1 of images, by the Gaussian process on one-hot maps, the categorical one, or directly."""

    def __init__(self, diffusion: DiffusionConfig, steps: float = 1.0) -> None:
        self.diffusion, self.steps = diffusion, steps  # steps: the share of them in which the second network learns

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """The label map (B, *size) int64, and the image (B, 1, *size) as the condition."""
        return batch["label"][:, 0].long(), Condition(batch["image"])

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """Cross-entropy and soft Dice of the first answer, plus those of the posterior of a noisy map, (B,).

        The second does not train the first: that is a direct segmentation, trained as if there were no diffusion.
        """
        assert isinstance(model, Posterior | LabelPosterior)
        network = model.network
        assert isinstance(network, AnsweredLabels)
        given = network.answered(cond)
        assert given.image is not None
        first = label_loss(given.image[:, network.channels :].float(), x0)
        if network.second is None or (model.training and left_out(self.steps, generators)):
            return first
        given = given.map_image(Tensor.detach)
        if isinstance(model, LabelPosterior):
            survival = 1 / (1 + sigma)  # the data's weight in a rectified flow of this sigma
            return first + categorical.loss(model, x0, survival, generators, given)
        eps = draw("gaussian", (model.classes, *x0.shape[1:]), generators, like=sigma)
        return first + posterior_loss(model, x0, eps, sigma, given)

    def starting(self, classes: int, size: Sequence[int], sigma: float, generators: Sequence[Generator]) -> Tensor:
        """Where sampling starts, (B, K, *size): noise of the first sigma, or labels drawn evenly for the categorical process."""
        if self.diffusion.process == "categorical":
            even = torch.full((len(generators), classes, *size), 1 / classes)
            labels = categorical.drawn(even, generators)
            return one_hot_of_classes(labels, classes)
        return sigma * draw("gaussian", (classes, *size), generators)
