"""The card of a trained model, `model.json`: all that is needed to rebuild it and to give its samples units and a place."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import isfinite, lcm
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from meddiff.baseline_config import Baseline, VAEConfig
from meddiff.baselines.gan import GAN
from meddiff.baselines.task import BaselineSynthesis
from meddiff.baselines.vae import VAE
from meddiff.config import Config, NetworkConfig
from meddiff.data.conditions import Known
from meddiff.data.transforms import AXES
from meddiff.diffusion.answered import LEFT, AnsweredLabels, Restored
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.diffusion.posterior import LabelPosterior, Posterior
from meddiff.errors import RunError
from meddiff.networks.autoencoder import Autoencoder
from meddiff.networks.unet import UNet
from meddiff.tasks.autoencoder import Autoencoding
from meddiff.tasks.restoration import Restoration
from meddiff.tasks.segmentation import Segmentation
from meddiff.tasks.synthesis import Synthesis, channels
from meddiff.tasks.task import Space, Task

# What multiplies c_noise so that its embedding resolves noise levels; the sinusoids were made for 1000 timesteps.
NOISE_SCALE = {"edm": 250.0, "flow": 1000.0}
LARGEST = 1 << 20  # bytes of a card


class Latents(BaseModel):
    """What a model of latents is trained on: `(z - mean) / std` per channel of an autoencoder's latents z."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    autoencoder: str  # SHA-256 of its weights
    factor: int  # voxels along each axis that a latent stands for
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Guarantee(BaseModel):
    """What a private training promises each patient of its split train, for the weights and all that follows from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["patient"] = "patient"  # added or removed, with all cases
    epsilon: float  # spent up to the card's step
    delta: float
    max_grad_norm: float
    noise_multiplicity: int
    images_per_patient: int  # in a step
    noise_multiplier: float  # standard deviation of the noise over max_grad_norm
    sample_rate: float  # probability of a patient to be drawn in a step
    patients: int
    steps: int
    accountant: str


class Card(BaseModel):
    """What a model is, beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    sigma_data: float  # model units
    space: Space
    latents: Latents | None = None  # None: the model is one of images
    labels: dict[str, int] = {}  # name -> number, in the order of the channels after background
    classes: tuple[str, ...] = ()  # of synthesis: what may be asked for, in the order of their numbers
    covariates: dict[str, tuple[float, float]] = {}  # of synthesis: name -> mean, standard deviation
    manifest: str  # digest of the cases it was trained from
    train_cases: int
    train_items: int  # slices, or volumes that patches are taken from
    step: int = 0  # of the weights beside the card
    weights: str = ""  # SHA-256 of weights.safetensors
    teacher: str = ""  # SHA-256 of the weights that it was distilled from; "" where it learned from images alone
    versions: dict[str, str] = {}
    privacy: Guarantee | None = None  # of a run with train.privacy
    limits: str = ""  # digest of the audit's settings when the model was trained; "" before they were recorded

    @model_validator(mode="after")
    def _means_something(self) -> "Card":
        space = self.space
        numbers = [self.sigma_data, space.scale, space.offset, *space.spacing_mm]
        if not all(map(isfinite, numbers)) or min(self.sigma_data, *space.spacing_mm) <= 0 or space.scale == 0:
            raise ValueError(f"sigma_data {self.sigma_data} and space {space} are no units to give samples in")
        if space.axis not in AXES:
            raise ValueError(f"space.axis is {space.axis!r}, none of {', '.join(AXES)}")
        return self

    @property
    def known(self) -> Known:
        """What the model can be asked for."""
        return Known(self.labels, self.classes, self.covariates)

    @classmethod
    def read(cls, path: Path) -> "Card":
        """The card in a file; RunError where it is missing or damaged."""
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has {path.stat().st_size} bytes")
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as e:  # pydantic's is a ValueError
            raise RunError(
                f"{path}: is not the card of a trained model ({e}). Give a folder of `meddiff train`."
            ) from e


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {name: version(name) for name in ("meddiff", "torch", "monai", "pytorch-ignite", "numpy")}


def build_task(config: Config, known: Known | None = None, reference: Mapping[str, Tensor] | None = None) -> Task:
    """The task of a config; synthesis needs what is `known` of labels and conditions. `reference`: of `train.reference`."""
    if config.baseline is not None:
        return BaselineSynthesis(config)
    if config.task == "synthesis":
        return Synthesis(config, known, reference)
    if config.task == "segmentation":
        return Segmentation(config.diffusion, config.train.sampling_steps)
    if config.task == "autoencoder":
        return Autoencoding(config.autoencoder)
    return Restoration(config.data, config.train.sampling_share, config.train.sampling_steps)


def build_model(
    config: Config,
    sigma_data: float,
    labels: Sequence[str],
    classes: Sequence[str] = (),
    latents: Latents | None = None,  # synthesis: the model is one of these
) -> nn.Module:
    """The untrained model of a config: what `engines` train and sample."""
    if config.baseline is not None:
        return _baseline(config.baseline, config)
    if config.task == "synthesis":
        own = len(latents.mean) if latents else None
        network = _synthesizer(config, labels, classes, own)
        return Preconditioned(network, config.diffusion.parameterization, sigma_data)
    if config.task == "autoencoder":
        settings = config.network.model_dump(
            include={"spatial_dims", "channels", "blocks", "norm_groups", "patch", "checkpointing"}
        )
        return Autoencoder(**settings, latent_channels=config.autoencoder.channels, window=config.data.size)
    if config.task == "segmentation":
        return _segmenter(config, len(labels) + 1)
    return _restorer(config, sigma_data)


def _baseline(settings: Baseline, config: Config) -> nn.Module:
    if isinstance(settings, VAEConfig):
        return VAE(settings, config.network, config.data.size)
    return GAN(settings, config.network, config.data.size)


def _unet(config: Config, inputs: int, outputs: int, *, second: bool = False, **settings: Any) -> UNet:
    own: dict[str, Any] = config.network.model_dump(exclude={"sampling_channels"})
    if second:
        own["channels"] = config.network.sampling_channels or _half(config.network)
    scale = NOISE_SCALE.get(config.diffusion.parameterization, 1.0)
    return UNet(**own, in_channels=inputs, out_channels=outputs, noise_scale=scale, **settings)


def _half(network: NetworkConfig) -> tuple[int, ...]:
    """Half of the channels of each level, as far as groups and heads go into them."""
    attends = network.attention or (False,) * len(network.channels)
    units = [lcm(network.norm_groups, network.head_channels if wanted else 1) for wanted in attends]
    return tuple(max(unit, n // 2 // unit * unit) for n, unit in zip(network.channels, units, strict=True))


def _synthesizer(config: Config, labels: Sequence[str], classes: Sequence[str], latents: int | None) -> UNet:
    own, given = channels(config, labels)
    own = latents or own
    told = len(config.condition.covariates)
    return _unet(config, own, own, cond_channels=given, classes=len(classes), covariates=told)


def _segmenter(config: Config, classes: int) -> nn.Module:
    images = 1
    second = None
    if config.diffusion.process != "direct":
        second = _unet(config, classes, classes, second=True, cond_channels=images + classes)
    network = AnsweredLabels(_unet(config, images, classes), second, images)
    kind = LabelPosterior if config.diffusion.process == "categorical" else Posterior
    return kind(network, classes)


def _restorer(config: Config, sigma_data: float) -> nn.Module:
    known = Restoration(config.data).known
    first = Preconditioned(_unet(config, 1, 1, cond_channels=known), "edm", sigma_data)
    second = None
    if config.diffusion.process != "direct":
        network = _unet(config, 1, 1, second=True, cond_channels=2 + known, covariates=1)
        second = Preconditioned(network, config.diffusion.parameterization, LEFT)
    return Restored(first, second, 1)
