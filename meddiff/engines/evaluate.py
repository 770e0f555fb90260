"""How near sets of samples are to held-out images, beside how near the training images are: the floor to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import learn
from meddiff.data.loader import evenly, fixed
from meddiff.data.manifest import Manifest
from meddiff.data.store import Store
from meddiff.engines.card import build_task
from meddiff.engines.encoder import trained_encoder
from meddiff.engines.evaluate_cases import Method
from meddiff.engines.fit import prepare
from meddiff.engines.predict import draw_samples
from meddiff.engines.quality import Figure, Judge, draws
from meddiff.errors import ManifestError, RunError
from meddiff.metrics.distances import nearest
from meddiff.metrics.radiomics import radiomics
from meddiff.tasks.synthesis import Synthesis


@dataclass(frozen=True)
class Real:
    """The real images that samples are compared with, in model units, (n, 1, *size)."""

    training: Tensor  # all there are
    held_out: Tensor
    patients: tuple[str, ...]  # of the held-out images


@dataclass(frozen=True)
class Comparison:
    """Sets of images in model units, (n, 1, *size), and the distances between them."""

    samples: Tensor
    held_out: Tensor
    training: Tensor
    closest: Tensor  # the training image nearest to each sample
    numbers: dict[str, float]
    quality: dict[str, dict[str, Figure]]  # set -> metric -> figure
    sets: dict[str, Tensor]  # the samples of every method
    encoder: str  # SHA-256 of the weights whose features were compared


def real_images(config: Config, manifest: Manifest, split: str) -> Real:
    """All training images, and at most `evaluate.n` held-out ones spread evenly, no more than there are to train on."""
    held_out, training = prepare(config, manifest, split), prepare(config, manifest, "train")
    n = min(config.evaluate.n, len(held_out), len(training))
    if n < 2:
        raise ManifestError(
            f"The split {split} and the training set give {n} images to compare; 2 at least are needed."
        )
    patients = tuple(held_out.cases[held_out.items[i].case].patient for i in evenly(held_out, n))
    return Real(fixed(training, len(training))["image"], fixed(held_out, n)["image"], patients)


def judge_of(real: Real, config: Config, device: torch.device) -> tuple[Judge, str]:
    """What compares sets with real images, and the SHA-256 of its encoder, which is trained now unless it was before."""
    encoder = trained_encoder(real.training, Store(config.data).folder, device, config.evaluate.encoder_steps)
    spaces = {"radiomic": radiomics, "encoder": encoder.features}
    return Judge(real.training, real.held_out, real.patients, spaces, config.evaluate.projections), encoder.sha256


def samples_like(model: nn.Module, config: Config, manifest: Manifest, split: str, n: int, seed: int) -> Tensor:
    """Images of n samples (n, 1, *size), asked for what n evenly spread held-out images are, if the model is conditional."""
    task = build_task(config, learn(config, manifest))
    assert isinstance(task, Synthesis)
    cond = task.condition(fixed(prepare(config, manifest, split), n))
    names = [f"evaluate_{i}" for i in range(n)]
    return torch.stack(list(draw_samples(model, config, names, seed, cond=cond)))[:, :1].clamp(-1, 1)


def compare(
    model: nn.Module, config: Config, manifest: Manifest, split: str, seed: int, others: Sequence[Method] = ()
) -> Comparison:
    """Every metric of `evaluate.n` samples, of as many of each other method, and of as many training images.

    All sets have one size, the smallest of what there is: distances depend on it. Samples are independent draws, so the
    training images they are compared with are too: the floor is the mean over random sets of them.
    """
    real = real_images(config, manifest, split)
    n = len(real.held_out)
    judge, encoder = judge_of(real, config, next(model.parameters()).device)
    sets = {
        name: samples_like(drawn, settings, manifest, split, n, seed)
        for name, drawn, settings in (("samples", model, config), *((o.name, o.model, o.config) for o in others))
    }
    quality = {name: judge.judge(images) for name, images in sets.items()}
    samples = sets["samples"]
    return Comparison(
        samples,
        real.held_out,
        real.training[draws(len(real.training), n)[0]],
        real.training[nearest(samples, real.training)],
        _numbers(quality["samples"]["sliced_wasserstein"], samples, real.held_out),
        quality,
        sets,
        encoder,
    )


def _numbers(distance: Figure, samples: Tensor, held_out: Tensor) -> dict[str, float]:
    return {
        "n": distance.n,
        "sliced_wasserstein": distance.value,
        "sliced_wasserstein_train": distance.train,
        "sliced_wasserstein_train_std": distance.train_std,
        "ratio": distance.value / distance.train,
        "mean": float(samples.mean()),
        "mean_held_out": float(held_out.mean()),
        "std": float(samples.std()),
        "std_held_out": float(held_out.std()),
    }


def refuse_unlike(first: Method, other: Method) -> None:
    """RunError unless two runs of synthesis learned the same images of the same patients on the same grid."""
    alike = {"spacing_mm", "size", "axis", "intensity", "modality", "min_foreground"}
    one, two = (m.config.data.model_dump(include=alike) for m in (first, other))
    unlike = [f"data.{name}" for name in sorted(alike) if one[name] != two[name]]
    if first.config.network.spatial_dims != other.config.network.spatial_dims:
        unlike.append("network.spatial_dims")
    if first.card.manifest != other.card.manifest:
        unlike.append("the manifest")
    if other.config.task != "synthesis":
        unlike.append(f"the task, {other.config.task}")
    if unlike:
        raise RunError(
            f"{other.name}: differs from {first.name} in {', '.join(unlike)}. Only runs on the same images have a common table."
        )
