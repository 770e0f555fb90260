"""The typed settings of a run. `config_file` reads them from YAML."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from meddiff.audit_config import AuditConfig
from meddiff.baseline_config import Baseline, refuse_size, refuse_unused
from meddiff.condition_config import ConditionConfig
from meddiff.degradation_config import Degradation, LogRange
from meddiff.distil_config import DistilConfig, refuse_sampling, refuse_unfit
from meddiff.intensity_config import Intensity, Percentile
from meddiff.privacy_config import PrivacyConfig
from meddiff.settings import Settings


class Augment(Settings):
    """Random changes of the training images; what is learned is the distribution after them."""

    flip: bool = False  # left to right, half of the time
    rotate_deg: float = Field(0.0, ge=0, le=180)  # uniform within plus or minus; in plane for 2D
    zoom: float = Field(0.0, ge=0, lt=1)  # relative size, uniform within 1 plus or minus
    shift_mm: float = Field(0.0, ge=0)  # per axis, uniform within plus or minus


class DataConfig(Settings):
    """Which images, on which grid, in which units."""

    manifest: Path  # of `meddiff scan`; relative to the working directory
    modality: str | None = None  # which image of a case; needed only where cases have several
    labels: tuple[str, ...] | None = (
        None  # names to learn, the rest being background; all of the manifest's unless given
    )
    paired: bool = False  # synthesis: the label map is drawn together with the image
    spacing_mm: tuple[Annotated[float, Field(gt=0)], ...]  # per axis; two for slices keep the distance between slices
    size: tuple[Annotated[int, Field(ge=1)], ...]  # voxels the network is trained on, per axis
    axis: Literal["sagittal", "coronal", "axial"] = "axial"  # what a 2D slice is perpendicular to, in patient axes
    intensity: Intensity = Percentile()
    min_foreground: float = Field(
        0.05, ge=0, lt=1
    )  # slices with a smaller share of voxels above background are left out
    crop: Literal["centre", "random"] | None = None  # unless given: centre for slices, random for volumes
    augment: Augment = Augment()
    degradation: Degradation | None = None  # restoration: what makes the degraded image of a clean one
    cache: Path | None = None  # preprocessed volumes; the user's cache folder unless given
    workers: int = Field(0, ge=0)  # loader processes
    unreadable_limit: float = Field(0.01, ge=0, le=1)  # share of the cases that may turn out unreadable in a run


class NetworkConfig(Settings):
    """The U-Net, or the two halves of an autoencoder."""

    spatial_dims: Literal[2, 3]
    channels: tuple[Annotated[int, Field(ge=1, le=1 << 14)], ...] = Field(
        min_length=1, max_length=12
    )  # per level, finest first
    blocks: int = Field(2, ge=1, le=16)  # residual blocks per level
    attention: tuple[bool, ...] | None = None  # per level; none unless given
    head_channels: int = Field(32, ge=1)  # channels of one attention head
    norm_groups: int = Field(8, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, about a third more time
    patch: int = Field(1, ge=1)  # the network works on patches of this many voxels an axis: faster, coarser
    sampling_channels: tuple[Annotated[int, Field(ge=1)], ...] | None = (
        None  # segmentation and restoration: per level, of the second network, which samples; half of `channels` unless given
    )

    @property
    def multiple(self) -> int:
        """Voxels along each axis that one of the coarsest level stands for."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _divides(self) -> "NetworkConfig":
        for level, width in enumerate(self.channels):
            if width % self.norm_groups:
                nearest = max(self.norm_groups, round(width / self.norm_groups) * self.norm_groups)
                raise ValueError(
                    f"channels[{level}] = {width} does not divide by norm_groups = {self.norm_groups}; "
                    f"use {nearest}, or norm_groups that divides {width}"
                )
            if self.attention and level < len(self.attention) and self.attention[level] and width % self.head_channels:
                raise ValueError(
                    f"channels[{level}] = {width} has attention and does not divide by head_channels = "
                    f"{self.head_channels}; use a head_channels that divides {width}"
                )
        if self.attention is not None and len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention needs one value per level: channels has {len(self.channels)}, attention {len(self.attention)}"
            )
        return self


class AutoencoderConfig(Settings):
    """The Gaussian over latents that an image becomes."""

    channels: int = Field(4, ge=1)  # of the latents
    kl: float = Field(1e-4, ge=0)  # weight of the nats per voxel beside the mean absolute error in model units


class LogNormal(Settings):
    """ln(sigma) normal (Karras et al. 2022)."""

    kind: Literal["lognormal"] = "lognormal"
    mean: float = -1.2
    std: float = Field(1.2, gt=0)


class UniformT(Settings):
    """The time of the cosine schedule uniform (Nichol and Dhariwal 2021)."""

    kind: Literal["uniform_t"]
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)


class LogitNormal(Settings):
    """The logit of a rectified flow's time normal (Esser et al. 2024)."""

    kind: Literal["logit_normal"]
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


class DiffusionConfig(Settings):
    """What the network predicts, and the noise it is trained on."""

    parameterization: Literal["edm", "eps", "v", "x0", "flow", "monai_rflow"] = "edm"
    process: Literal["gaussian", "categorical", "direct"] = (
        "gaussian"  # categorical: labels change into labels; direct: the first answer only, the baseline without diffusion
    )
    sigma_data: float | Literal["auto"] = "auto"  # standard deviation of the training images; "auto" measures it
    noise: Literal["gaussian", "uniform", "simplex"] = "gaussian"
    training: LogNormal | UniformT | LogitNormal = Field(LogNormal(), discriminator="kind")
    latent: Path | None = None  # synthesis: the run of an autoencoder whose latents take the place of the images


class TrainConfig(Settings):
    """Optimisation."""

    steps: int = Field(ge=1)  # optimiser steps, the whole length of the run
    batch: int = Field(16, ge=1)  # images per optimiser step, over all accumulation
    accumulate: int = Field(1, ge=1)  # forward and backward passes per optimiser step; divides batch
    sampling_share: float = Field(1.0, gt=0, le=1)  # restoration: of each batch, what the second network learns from
    sampling_steps: float = Field(1.0, gt=0, le=1)  # restoration, segmentation: of all steps, those in which it learns
    lr: float = Field(3e-4, gt=0)
    distil: DistilConfig | None = None  # synthesis: learn from a trained run to sample in a few evaluations
    reference: int = Field(0, ge=0)  # images, evenly spread, that share the target at high noise (Xu et al. 2023)
    warmup: int = Field(100, ge=0)  # steps of linear warm-up; a cosine to 0 follows
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)  # of AdamW
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)  # of the gradient's norm
    ema: float = Field(0.999, ge=0, lt=1)  # decay of the weights' moving average, per optimiser step
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    device: str = "auto"  # cuda, mps, cpu; "auto" takes the first there is
    checkpoint_every: int = Field(500, ge=1)  # steps
    validate_every: int = Field(500, ge=1)  # steps
    preview_every: int = Field(500, ge=1)  # steps
    keep_checkpoints: int = Field(2, ge=2)  # the newest ones; the best stays besides
    nonfinite_limit: int = Field(20, ge=1)  # steps in a row without a finite loss and gradient, after which a run ends
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: each process holds the whole model, or a share of it
    compile: bool = False  # by torch.compile; needs a C++ compiler on a CPU
    channels_last: bool = False  # memory layout of the convolutions
    deterministic: bool = True  # the same run gives the same bytes on a GPU too, at some cost of time
    ema_device: Literal["cpu"] | None = None  # where the moving average lives; beside the model unless given
    privacy: PrivacyConfig | None = None  # differential privacy; `batch` is then the patients to be expected in a step

    @model_validator(mode="after")
    def _accumulates(self) -> "TrainConfig":
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide batch = {self.batch}")
        if self.parallel == "fsdp" and (self.precision == "fp16" or self.channels_last or self.ema_device):
            raise ValueError(
                "parallel: fsdp goes with precision fp32 or bf16, without channels_last and ema_device; it shares out the "
                "moving average too"
            )
        return self


class SampleConfig(Settings):
    """How samples are drawn."""

    sampler: Literal["euler", "heun", "dpmpp_2m", "ancestral"] = "dpmpp_2m"
    steps: int = Field(16, ge=1)  # network evaluations, the first of which finds the centre of the start
    samples: int = Field(8, ge=1)  # segmentation and restoration: samples per case
    grid: Literal["karras", "ddpm_linear", "cosine", "flow"] = "karras"
    sigma_min: float = Field(0.01, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    guidance: float = Field(1.0, ge=0)  # synthesis: above 1 exaggerates the condition, for twice the evaluations
    batch: int = Field(16, ge=1)  # samples side by side; does not change them
    precision: Literal["fp32", "bf16"] = (
        "fp32"  # of the network; in bf16 a sample depends on its batch in the third digit
    )
    overlap: Annotated[int, Field(ge=0)] = (
        16  # voxels that windows share where a sample is larger than data.size; half of it at most
    )
    skip_empty: bool = False  # segmentation: what holds background alone, a slice or a window, is background, unseen


class EvaluateConfig(Settings):
    """How a set of samples is compared with held-out images."""

    n: int = Field(256, ge=2)  # samples, and at most that many real images
    projections: int = Field(2000, ge=1)  # directions of the sliced Wasserstein distance
    encoder_steps: int = Field(300, ge=1)  # training of the encoder whose features are compared
    sigmas: tuple[Annotated[float, Field(gt=0)], ...] = (0.05, 0.1, 0.2)  # noise of restoration, shares of the range
    draws: int = Field(16, ge=2)  # noise levels of diagnosis, each one evaluation a class
    draw_sigmas: LogRange = (0.1, 10.0)  # between which they lie, evenly in their logarithm


class Config(Settings):
    """One run, whole."""

    task: Literal["synthesis", "segmentation", "restoration", "autoencoder"]
    data: DataConfig
    condition: ConditionConfig = ConditionConfig()
    network: NetworkConfig
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    baseline: Baseline | None = Field(None, discriminator="kind")  # synthesis without diffusion, to compare with
    train: TrainConfig
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        dims, data, network = self.network.spatial_dims, self.data, self.network
        if len(data.size) != dims:
            raise ValueError(f"data.size has {len(data.size)} axes, network.spatial_dims is {dims}; give {dims} sizes")
        if len(data.spacing_mm) not in (dims, 3):
            raise ValueError(f"data.spacing_mm has {len(data.spacing_mm)} values; give {dims} of them")
        smallest = network.multiple
        if self.diffusion.latent is None and min(data.size) < smallest:
            raise ValueError(
                f"data.size = {list(data.size)} is too small for {len(network.channels)} levels of network.channels: "
                f"the smallest size is {smallest} an axis; use a larger size or fewer levels"
            )
        if self.task == "autoencoder" and self.train.parallel == "fsdp":
            raise ValueError("train.parallel = fsdp shares out denoisers; an autoencoder trains with ddp. Change it")
        process = self.diffusion.process
        only = {"synthesis": ("gaussian",), "autoencoder": ("gaussian",), "restoration": ("gaussian", "direct")}
        if process not in only.get(self.task, (process,)):
            raise ValueError(f"diffusion.process = {process} is not for {self.task}; leave it at gaussian")
        if (self.task == "restoration") != (data.degradation is not None):
            raise ValueError(
                "restoration needs data.degradation, and no other task has one; "
                f"task is {self.task}, data.degradation is {'missing' if data.degradation is None else 'given'}"
            )
        if self.train.sampling_share < 1 and self.task != "restoration":
            raise ValueError("train.sampling_share is for restoration; leave it at 1")
        if self.train.sampling_steps < 1 and self.task not in ("restoration", "segmentation"):
            raise ValueError("train.sampling_steps is for restoration and segmentation; leave it at 1")
        self._check_baseline()
        self._check_condition()
        self._check_latent()
        self._check_distil()
        least = 3 if self.task == "synthesis" else 1
        if self.train.distil is None and (self.sample.steps < least or self.sample.steps == 2):
            raise ValueError(
                f"sample.steps = {self.sample.steps} is too few: 1 is the first answer, sampling starts at 3"
            )
        if self.sample.skip_empty and self.task != "segmentation":
            raise ValueError(f"sample.skip_empty is for segmentation, task is {self.task}; leave it out")
        if self.sample.sigma_min >= self.sample.sigma_max:
            raise ValueError(f"sample.sigma_min = {self.sample.sigma_min:g} must be below sample.sigma_max")
        return self

    def _check_baseline(self) -> None:
        if self.baseline is None:
            return
        network = self.network
        unused = {
            f"task {self.task}": self.task != "synthesis",
            "network.attention": any(network.attention or ()),
            "network.dropout": network.dropout,
            "network.checkpointing": network.checkpointing,
            "network.sampling_channels": network.sampling_channels,
            "diffusion": self.diffusion != DiffusionConfig(),
            "condition": self.condition.any,
            "data.paired": self.data.paired,
            "train.reference": self.train.reference,
            "train.parallel fsdp": self.train.parallel == "fsdp",
            "train.compile": self.train.compile,
        }
        refuse_unused(self.baseline, [name for name, given in unused.items() if given])
        refuse_size(self.data.size, network.multiple)

    def _check_distil(self) -> None:
        distil = self.train.distil
        if distil is None:
            return
        refuse_unfit(
            {
                f"task {self.task}": self.task != "synthesis",
                "baseline": self.baseline is not None,
                "diffusion.latent": self.diffusion.latent is not None,
                f"diffusion.noise {self.diffusion.noise}": self.diffusion.noise != "gaussian",
                "train.reference": self.train.reference > 0,
                "sample.guidance": self.sample.guidance != 1,
            }
        )
        refuse_sampling(self.sample.sampler, self.sample.steps, distil.evaluations)

    def _check_latent(self) -> None:
        """ValueError where an autoencoder, or a model of its latents, cannot be what is asked for."""
        data, network = self.data, self.network
        if self.diffusion.latent is not None:
            if self.task != "synthesis":
                raise ValueError(f"diffusion.latent is for synthesis, task is {self.task}; leave it out")
            given = self.condition
            if given.mask or given.image or given.of_label or data.paired:
                raise ValueError(
                    "latents are drawn for nothing, a class by condition.classes.column or covariates; label maps and other images "
                    "have no place in them. Remove diffusion.latent, or those"
                )
            if data.augment != Augment():
                raise ValueError(
                    "data.augment changes images, and latents are encoded once; train the autoencoder with it, and leave it out here"
                )
        if self.task == "autoencoder":
            if network.attention and any(network.attention):
                raise ValueError("network.attention: an autoencoder has none, so that its windows agree; leave it out")
            if network.dropout:
                raise ValueError(f"network.dropout = {network.dropout:g}: an autoencoder has none; leave it out")
            if any(n % (2 * network.multiple) for n in data.size):
                raise ValueError(
                    f"data.size = {list(data.size)} must divide by {2 * network.multiple}, twice the voxels of a latent, so that "
                    "half of a window can be shared"
                )

    def _check_condition(self) -> None:
        given, paired = self.condition, self.data.paired
        if self.task != "synthesis" and (given.any or paired):
            raise ValueError(f"condition and data.paired are for synthesis; task is {self.task}. Remove them")
        if given.mask and (paired or given.of_label):
            raise ValueError(
                "condition.mask gives the label map: it cannot be drawn too (data.paired), nor be a class "
                "(condition.classes.label). Remove one of them"
            )
        if given.of_label and self.data.labels and given.of_label not in self.data.labels:
            raise ValueError(f"condition.classes.label = {given.of_label} is none of data.labels; add it there")
        if self.train.reference and (self.task != "synthesis" or self.diffusion.noise != "gaussian" or given.more):
            raise ValueError(
                "train.reference is for synthesis with Gaussian noise, unconditional or by class; set it to 0"
            )

    @property
    def needs_labels(self) -> bool:
        """Whether every case must have a label map."""
        return self.task == "segmentation" or self.data.paired or self.condition.mask or bool(self.condition.of_label)

    def dump(self) -> str:
        """The config as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)
