"""Training with differential privacy: what is promised to each patient, and at what price. See docs/privacy.md."""

from pydantic import Field

from meddiff.settings import Settings


class PrivacyConfig(Settings):
    """A budget of (epsilon, delta) for each patient, spent evenly over `train.steps`."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)  # far below one over the number of training patients
    max_grad_norm: float = Field(
        1.0, gt=0
    )  # that a patient's gradient is scaled down to; takes the place of train.clip
    noise_multiplicity: int = Field(4, ge=1)  # draws of noise level and noise for each image (Dockhorn et al. 2023)
    images_per_patient: int = Field(4, ge=1)  # slices or crops of a patient in a step; their gradients are averaged
