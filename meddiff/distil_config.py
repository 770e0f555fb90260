"""Distillation: a run that learns to do in a few evaluations what another one does in many."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from meddiff.settings import Settings


class DistilConfig(Settings):
    """Whom to learn from, and how few evaluations a sample is to take."""

    teacher: Path  # a run of synthesis with the same network; needed for training only
    evaluations: int = Field(4, ge=1, le=16)  # of the student, for one sample
    substeps: int = Field(4, ge=1, le=64)  # evaluations of the teacher that each of them stands for


def refuse_unfit(unfit: Mapping[str, bool]) -> None:
    """ValueError where a config has, by name, what cannot be distilled."""
    names = [name for name, given in unfit.items() if given]
    if names:
        raise ValueError(
            f"train.distil is for synthesis of images along the paths of Gaussian noise; remove {', '.join(names)}"
        )


def refuse_sampling(sampler: str, steps: int, evaluations: int) -> None:
    """ValueError unless samples are drawn as the student learned to."""
    if (sampler, steps) != ("euler", evaluations):
        raise ValueError(
            f"a run that is distilled to {evaluations} evaluations knows these noise levels only: sample.sampler must be euler and "
            f"sample.steps {evaluations}; found {sampler} and {steps}. For another number, distil again"
        )
