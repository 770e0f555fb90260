"""How near a set of samples is to held-out images, beside how near the training images are: the floor to compare with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import learn
from meddiff.data.loader import fixed
from meddiff.data.manifest import Manifest
from meddiff.engines.card import build_task
from meddiff.engines.fit import prepare
from meddiff.engines.predict import draw_samples
from meddiff.errors import ManifestError
from meddiff.metrics.distances import nearest, sliced_wasserstein
from meddiff.seeds import generator
from meddiff.tasks.synthesis import Synthesis

DRAWS = 20  # sets of training images that the floor is averaged over


@dataclass(frozen=True)
class Comparison:
    """Sets of images in model units, (n, 1, *size), and the distances between them."""

    samples: Tensor
    held_out: Tensor
    training: Tensor
    closest: Tensor  # the training image nearest to each sample
    numbers: dict[str, float]


def compare(model: nn.Module, config: Config, manifest: Manifest, split: str, seed: int) -> Comparison:
    """Sliced Wasserstein distances of `evaluate.n` samples and as many training images to held-out images of one split.

    All sets have one size, the smallest of what there is: the distance depends on it. Samples are independent draws, so the
    training images they are compared with are too: the floor is the mean over `DRAWS` random sets of them.
    """
    batch = fixed(prepare(config, manifest, split), config.evaluate.n)
    held_out = batch["image"]
    train_images = prepare(config, manifest, "train")
    n = min(config.evaluate.n, len(held_out), len(train_images))
    if n < 2:
        raise ManifestError(
            f"The split {split} and the training set give {n} images to compare; 2 at least are needed."
        )
    rows = torch.linspace(0, len(held_out) - 1, n).round().long()
    held_out = held_out[rows]
    task = build_task(config, learn(config, manifest))
    assert isinstance(task, Synthesis)
    given = {name: values[rows] for name, values in batch.items()}  # samples are asked for what these images are
    cond = task.condition(given)
    everything = fixed(train_images, len(train_images))["image"]
    names = [f"evaluate_{i}" for i in range(n)]
    samples = torch.stack(list(draw_samples(model, config, names, seed, cond=cond)))[:, :1].clamp(-1, 1)
    projections = config.evaluate.projections
    to_held_out = sliced_wasserstein(samples, held_out, projections)
    draws = [torch.randperm(len(everything), generator=generator(0, "floor", i))[:n] for i in range(DRAWS)]
    floors = torch.tensor([sliced_wasserstein(everything[draw], held_out, projections) for draw in draws])
    floor = float(floors.mean())
    numbers = {
        "n": n,
        "sliced_wasserstein": to_held_out,
        "sliced_wasserstein_train": floor,
        "sliced_wasserstein_train_std": float(floors.std()),
        "ratio": to_held_out / floor,
        "mean": float(samples.mean()),
        "mean_held_out": float(held_out.mean()),
        "std": float(samples.std()),
        "std_held_out": float(held_out.std()),
    }
    return Comparison(samples, held_out, everything[draws[0]], everything[nearest(samples, everything)], numbers)
