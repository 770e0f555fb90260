"""The card of a trained model, `model.json`: all that is needed to rebuild it and to give its samples units and a place."""

from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from meddiff.config import Config
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.errors import RunError
from meddiff.networks.unet import UNet
from meddiff.tasks.synthesis import Synthesis
from meddiff.tasks.task import Space, Task

TASKS: dict[str, type[Task]] = {"synthesis": Synthesis}
# What multiplies c_noise so that its embedding resolves noise levels; the sinusoids were made for 1000 timesteps.
NOISE_SCALE = {"edm": 250.0, "flow": 1000.0}


class Card(BaseModel):
    """What a model is, beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    sigma_data: float  # model units
    space: Space
    manifest: str  # digest of the cases it was trained from
    train_cases: int
    train_items: int  # slices, or volumes that patches are taken from
    step: int = 0  # of the weights beside the card
    weights: str = ""  # SHA-256 of weights.safetensors
    versions: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> "Card":
        """The card in a file; RunError where it is missing or damaged."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as e:
            raise RunError(
                f"{path}: is not the card of a trained model ({e}). Give a folder of `meddiff train`."
            ) from e


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {name: version(name) for name in ("meddiff", "torch", "monai", "pytorch-ignite", "numpy")}


def build_task(config: Config) -> Task:
    """The task of a config."""
    return TASKS[config.task]()


def build_denoiser(config: Config, sigma_data: float) -> Preconditioned:
    """The untrained denoiser of a config."""
    task, diffusion = build_task(config), config.diffusion
    network: nn.Module = UNet(
        **config.network.model_dump(),
        in_channels=task.channels,
        out_channels=task.channels,
        noise_scale=NOISE_SCALE.get(diffusion.parameterization, 1.0),
    )
    return Preconditioned(network, diffusion.parameterization, sigma_data)
