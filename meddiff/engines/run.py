"""The run folder: one place that holds all there is about a trained model, and can be copied as it is.

config.yaml, manifest.jsonl, weights.safetensors (the EMA weights), model.json, checkpoints/, log.jsonl, previews/,
tensorboard/
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from meddiff.config import Config, load_config
from meddiff.data.conditions import given_data
from meddiff.data.manifest import Manifest
from meddiff.data.store import Store
from meddiff.engines.card import Card, build_model
from meddiff.engines.checkpoint import write_atomic
from meddiff.errors import RunError


class Run:
    """Paths of a run folder, and what is in them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_path = self.folder / "config.yaml"
        self.manifest_path = self.folder / "manifest.jsonl"
        self.weights_path = self.folder / "weights.safetensors"
        self.card_path = self.folder / "model.json"
        self.checkpoints = self.folder / "checkpoints"
        self.log_path = self.folder / "log.jsonl"
        self.previews = self.folder / "previews"
        self.tensorboard = self.folder / "tensorboard"

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run; RunError where the folder is none."""
        run = cls(folder)
        if not run.config_path.is_file():
            raise RunError(
                f"{run.folder}: is not a run folder (no config.yaml). Give a folder that `meddiff train` wrote."
            )
        return run

    def refuse_if_taken(self) -> None:
        """RunError where the folder holds anything already."""
        if self.config_path.exists():
            raise RunError(
                f"{self.folder}: holds another run. Choose a new folder with -o, or go on with that run by --resume."
            )
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise RunError(f"{self.folder}: is not empty and is not a run. Choose a new or an empty folder with -o.")
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder}: is a file, a folder is needed. Choose another name with -o.")

    def begin(self, config: Config, manifest: Manifest) -> None:
        """Write what a run starts with."""
        for folder in (self.folder, self.checkpoints, self.previews, self.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config_path, config.dump().encode())
        manifest.save_copy(self.manifest_path)

    def config(self) -> Config:
        """The config of the run."""
        return load_config(self.config_path)

    def manifest(self) -> Manifest:
        """The run's copy of the manifest."""
        return Manifest.read(self.manifest_path)

    def save_model(self, model: nn.Module, card: Card) -> None:
        """The weights and the card that describes them, in this order: the card's hash tells whether both belong together."""
        content = save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
        card = card.model_copy(update={"weights": hashlib.sha256(content).hexdigest()})
        write_atomic(self.weights_path, content)
        write_atomic(self.card_path, card.model_dump_json(indent=2).encode())

    def load_model(self, device: torch.device) -> tuple[nn.Module, Card]:
        """The denoiser, ready to sample from, and its card; RunError where the weights are missing or not the card's."""
        card = Card.read(self.card_path)
        try:
            found = hashlib.sha256(self.weights_path.read_bytes()).hexdigest()
            if found != card.weights:
                raise RunError(
                    f"{self.weights_path}: has SHA-256 {found[:12]}..., model.json says {card.weights[:12]}.... "
                    "One of them is from another run or damaged; copy the folder again."
                )
            model = build_model(self.config(), card.sigma_data, tuple(card.labels), card.classes)
            model.load_state_dict(load_file(self.weights_path))
        except (OSError, SafetensorError, RuntimeError) as e:
            raise RunError(f"{self.weights_path}: cannot be loaded ({e}). Copy the run folder again.") from e
        return model.to(device).eval().requires_grad_(False), card

    def forget_cache(self) -> int:
        """Delete the preprocessed volumes that this run was trained on, which are made again when needed; how many."""
        config = self.config()
        stores = [Store(config.data, tuple(Card.read(self.card_path).labels))]
        if config.condition.image:
            stores.append(Store(given_data(config.data, config.condition.image)))
        return sum(store.forget(case) for store in stores for case in self.manifest().cases)
