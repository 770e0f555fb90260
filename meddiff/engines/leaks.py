"""What would get past the noise of a private run: refused before anything is read or written, each with its reason."""

from meddiff.config import Config, TrainConfig
from meddiff.engines.processes import world
from meddiff.errors import PrivacyError
from meddiff.intensity_config import Percentile


def refuse_leaks(config: Config) -> None:
    """PrivacyError, naming the setting, where `train.privacy` promises what the rest of the config breaks."""
    privacy = config.train.privacy
    if privacy is None:
        return
    reason = _of_processes() or _of_kind(config) or _of_statistics(config) or _of_training(config.train)
    if reason:
        raise PrivacyError(f"{reason} Or remove train.privacy.")


def _of_processes() -> str | None:
    if world() > 1:
        return "train.privacy: patients are drawn, and noise is added, by one process; start one without torchrun."
    return None


def _of_statistics(config: Config) -> str | None:
    """What would be measured on the patients, and stand in the model or its card without noise."""
    data, given = config.data, config.condition
    if config.diffusion.sigma_data == "auto":
        return "diffusion.sigma_data: auto is measured on the patients, without noise. Give a number, about 0.5 for images in -1 to 1."
    if isinstance(data.intensity, Percentile):
        return (
            "data.intensity: percentiles are measured on the patients, and their median is on the model's card without noise. Give "
            "fixed limits: {kind: window, low: ..., high: ...}."
        )
    if len(data.spacing_mm) == 2:
        return "data.spacing_mm: the distance between slices is measured on the patients, without noise. Give three numbers."
    if given.covariates:
        return f"condition.covariates: mean and spread of {given.covariates[0]} are measured on the patients. Leave them out."
    if given.classes and given.classes.column and not given.classes.values:
        return (
            f"condition.classes: which values {given.classes.column} takes is learnt from the patients. Name them with "
            "condition.classes.values."
        )
    if config.needs_labels and data.labels is None:
        return "data.labels: which labels there are is learnt from the patients. Name them."
    if config.train.reference:
        return "train.reference: images of patients would be a part of every target, whoever is drawn. Set it to 0."
    return None


def _of_kind(config: Config) -> str | None:
    """Models that have a second way to the patients."""
    if config.diffusion.latent is not None:
        return (
            "diffusion.latent: its autoencoder, and the mean and spread of the latents, were learnt from patients without "
            "privacy. Train on images."
        )
    if config.train.distil is not None:
        return "train.distil: its teacher learnt from patients without privacy, and its answers are the targets. Leave it out."
    if config.task == "autoencoder":
        return "task: there is no private training of an autoencoder, nor of models of its latents."
    if config.baseline is not None:
        return f"baseline: there is no private training of a {config.baseline.kind}."
    return None


def _of_training(train: TrainConfig) -> str | None:
    """Settings of the optimiser that look at the gradient before the noise is added, or have no place here."""
    assert train.privacy is not None
    if train.precision == "fp16":
        return (
            "train.precision: fp16 scales the loss by what gradients of patients overflowed before. Use fp32 or bf16."
        )
    if train.clip != TrainConfig.model_fields["clip"].default:
        return f"train.clip = {train.clip:g}: train.privacy.max_grad_norm takes its place. Leave it out."
    images = train.privacy.images_per_patient * train.privacy.noise_multiplicity
    if images % train.accumulate:
        return (
            f"train.accumulate = {train.accumulate}: divides the images of a patient, images_per_patient * noise_multiplicity = "
            f"{images}, into passes. Use a divisor of that."
        )
    return None
